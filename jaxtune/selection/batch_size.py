"""Which batch size: the largest that fits on the device, and the one up to which larger batches pay.

The first is read off compiled programs that are never run. The second is the gradient noise scale (McCandlish et al. 2018, An Empirical
Model of Large-Batch Training): the batch size at which a gradient's noise is as large as the gradient itself. It grows while a model
learns, so it is measured where training begins and again after a short training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.data.augment import device_part
from jaxtune.layers.dropout import Dropout
from jaxtune.selection.short_trainings import ShortTrainings
from jaxtune.session import objective
from jaxtune.training.compile import CompiledStep, check_fits, device_memory, memory

PIECES = 8  # small batches that make up a big one
BLOCKS = 16  # big batches that are measured
SMALLEST_BIG = 16  # rows


@dataclass(frozen=True)
class Fit:
    """A batch size, and what the compiled step of its widest batch needs on one device."""

    rows: int
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Largest:
    """
    Attributes:
        tried: sizes that were compiled, ascending; the last may not fit.
        rows: the largest that fits; `ended` tells why no larger one is named.
        limit_bytes: what the device has; None where it does not say.
    """

    tried: tuple[Fit, ...]
    rows: int
    width: int | None
    limit_bytes: int | None
    ended: str


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale in examples, with its 95 % interval; None where noise hides the gradient, that is, without upper end."""

    value: float | None
    low: float | None
    high: float | None
    after_steps: int
    blocks: int


@dataclass(frozen=True)
class BatchSizes:
    """`scales`: at the start, then after a short training, where there was one."""

    present: int
    largest: Largest
    scales: tuple[NoiseScale, ...]
    sentences: tuple[str, ...]


def batch_sizes(trainings: ShortTrainings, seed: int, rates: Sequence[float] | None) -> BatchSizes:
    """Measures both, the noise scale at the start and after a training with these rates."""
    largest, norms = largest_batch(trainings), squared_norms(trainings)
    trainings.start(seed)
    scales = [noise_scale(trainings, norms, seed, 0)]
    if rates:
        for _ in trainings.train(seed, rates):
            pass
        scales.append(noise_scale(trainings, norms, seed + 1, len(rates)))
    present = trainings.compiled.rows
    return BatchSizes(present, largest, tuple(scales), sentences(present, largest, scales))


def largest_batch(trainings: ShortTrainings) -> Largest:
    """Doubles the batch and compiles the step until it does not fit, or the batch would hold more rows than the training split."""
    session, stage = trainings.session, trainings.stage
    rows, width = trainings.compiled.rows, trainings.compiled.width
    device = session.placement.mesh.devices.flat[0]
    limit, there = device_memory(device), len(session.prepared.splits["train"])
    widest = max(stage.step.programs, key=lambda key: sum(math.prod(shape) for _, shape, _ in key))
    scalars = session.placement.put(stage.controls(0, 1.0))
    apart = CompiledStep.of(stage.step.function, stage.state, session.placement)  # or the training's count of programs would grow
    tried = [Fit(rows, trainings.compiled.memory.peak, True)]
    while True:
        rows *= 2
        if rows > there:
            ended = f"{rows:,} rows would be more than the {there:,} of the training split"
            break
        batch = {name: jax.ShapeDtypeStruct((rows, *shape[1:]), dtype, sharding=session.placement.rows()) for name, shape, dtype in widest}
        needed = memory(apart.prepare(stage.state, batch, scalars))
        apart.programs.clear()
        try:
            check_fits(needed, limit, rows, width)
        except ConfigError:
            tried.append(Fit(rows, needed.peak, False))
            ended = f"{rows:,} rows would need {gib(needed.peak)} of {gib(limit or 0)}"
            break
        tried.append(Fit(rows, needed.peak, True))
    return Largest(tuple(tried), max(fit.rows for fit in tried if fit.fits), width, limit, ended)


# -- the gradient noise scale -------------------------------------------------------------------------------------------------


def noise_scale(trainings: ShortTrainings, norms: Any, seed: int, after_steps: int) -> NoiseScale:
    """The noise scale of the loss as it is trained (dropout and augmentation included) at the present parameters.

    Every big batch is cut into small ones; both come from the same rows. Batches have one width, so that they are a fair draw of the split:
    in the buckets of training, rows of one batch are alike in length.

    Args:
        norms: made by `squared_norms`, which compiles once for all calls.
    """
    session, state = trainings.session, trainings.stage.state
    plan = trainings.plan(seed)
    unit = math.lcm(PIECES, session.placement.batch_ways)
    rows = unit * max(1, round(max(trainings.compiled.rows, SMALLEST_BIG) / unit))
    widths = None if plan.widths is None else plan.widths[-1:]
    plan = replace(plan, widths=widths, batch_size=rows, batch_tokens=None, divisor=unit)
    rates = session.placement.put(trainings.stage.controls(0, 1.0)["dropout"])
    small, big = [], []
    with session.feed("train", plan, stop=2 * BLOCKS * max(1, plan.steps()), training=True) as feed:
        for number, batch in enumerate(feed):
            if batch.examples < rows:  # the last of an epoch is filled up with rows that weigh nothing
                if plan.steps() == 1:
                    break
                continue
            key = session.placement.put(jax.random.fold_in(jax.random.key(seed), number))
            with session.placement.active():
                found = jax.device_get(norms(state.trainable, state.frozen, state.variables, batch.arrays, key, rates))
            if all(np.isfinite(part).all() for part in found):
                small.append(found[0])
                big.append(float(found[1]))
            if len(big) == BLOCKS:
                break
    value, low, high = estimate(np.array(small), np.array(big), rows // PIECES, rows)
    return NoiseScale(value, low, high, after_steps, len(big))


def squared_norms(trainings: ShortTrainings) -> Any:
    """A jitted (trainable, frozen, variables, batch, key, dropout rates) -> (f32[PIECES], f32[]): squared norms of the gradients of a
    batch's pieces and of the whole batch."""
    subject, blueprint = trainings.session.subject, trainings.stage.blueprint
    experiment = subject.experiment
    loss_of_batch = partial(objective, subject.task)
    augment = device_part(experiment.data.augment, subject.classes)
    dropout = experiment.model.rates(subject.base.family) is not None

    def loss(trainable: Any, frozen: Any, variables: Any, batch: Mapping[str, jax.Array], key: jax.Array, rates: Any) -> jax.Array:
        module = blueprint.build(trainable, frozen, variables)
        return loss_of_batch(module, batch, Dropout(key=key, **rates) if dropout else None).mean

    def norms(trainable: Any, frozen: Any, variables: Any, batch: Any, key: jax.Array, rates: Any) -> Any:
        if augment is not None:
            batch = augment(batch, jax.random.fold_in(key, 0))

        def piece(total: Any, part: Any) -> Any:
            gradient = jax.grad(loss)(trainable, frozen, variables, part[0], part[1], rates)
            return jax.tree.map(jnp.add, total, gradient), squared(gradient)

        parts = jax.tree.map(lambda x: x.reshape(x.shape[0] // PIECES, PIECES, *x.shape[1:]).swapaxes(0, 1), dict(batch))
        keys = jax.random.split(jax.random.fold_in(key, 1), PIECES)
        total, each = jax.lax.scan(piece, jax.tree.map(jnp.zeros_like, trainable), (parts, keys))
        return each, squared(total) / PIECES**2

    return jax.jit(norms, out_shardings=trainings.session.placement.replicated)


def squared(tree: Any) -> jax.Array:
    return sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)), jnp.zeros((), jnp.float32))


def estimate(small: np.ndarray, big: np.ndarray, small_rows: int, big_rows: int) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of the simple noise scale tr(S) / |G|^2 (McCandlish et al. 2018, appendix A.1), in examples.

    A squared norm of the gradient of b examples is |G|^2 + tr(S) / b on average, so two sizes give both parts without bias. Their ratio is
    taken of sums over all blocks; the interval is the bootstrap's over blocks.

    Args:
        small: squared norms f64[blocks, pieces] of the gradients of `small_rows` examples; `big`: f64[blocks] of `big_rows`.
    """
    if len(big) < 3:
        return None, None, None
    each = small.mean(axis=1)
    noise = (each - big) / (1 / small_rows - 1 / big_rows)
    signal = (big_rows * big - small_rows * each) / (big_rows - small_rows)
    drawn = np.random.default_rng(0).integers(0, len(big), (2000, len(big)))
    noises, signals = noise[drawn].mean(axis=1), signal[drawn].mean(axis=1)
    ratios = np.where(signals > 0, np.maximum(noises, 0) / np.where(signals > 0, signals, 1), math.inf)
    low, high = (number_or_none(np.quantile(ratios, q, method="nearest")) for q in (0.025, 0.975))
    return number_or_none(max(noise.mean(), 0) / signal.mean() if signal.mean() > 0 else math.inf), low, high


def number_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# -- words ------------------------------------------------------------------------------------------------------------------


def sentences(present: int, largest: Largest, scales: Sequence[NoiseScale]) -> tuple[str, ...]:
    """What was found, plainly."""
    top = next(fit for fit in largest.tried if fit.rows == largest.rows)
    width = "" if largest.width is None else f" of {largest.width} tokens"
    of = "the device does not say how much it has" if largest.limit_bytes is None else f"of {gib(largest.limit_bytes)}"
    told = [f"Largest batch: {top.rows:,} rows{width} need {gib(top.bytes)}, {of}; {largest.ended}."]
    known = [scale for scale in scales if scale.blocks >= 3]
    if not known:
        return (*told, "Useful batch: the training split is too small to measure the gradient noise.")
    where = [f"{scale_words(scale)} {'at the start' if scale.after_steps == 0 else f'after {scale.after_steps} steps'}" for scale in known]
    told.append(f"Gradient noise scale: {', '.join(where)}.")
    latest = known[-1]
    if latest.value is None:
        told.append(f"Useful batch: more than can be measured here; batches far above {present} rows still pay.")
        return tuple(told)
    useful = max(1, round(latest.value))
    if present > 2 * useful:
        advice = (
            f"the present {present} rows average more than is needed: a smaller batch, with more and smaller steps, costs less per result"
        )
    elif 2 * present < useful:
        advice = f"a larger batch than the present {present} rows needs nearly proportionally fewer steps"
    else:
        advice = f"the present {present} rows are about right"
    if useful > largest.rows:
        advice += f"; {largest.rows:,} rows fit at once, accumulation makes up the rest"
    told.append(f"Useful batch: about {about(useful)} rows; {advice}.")
    return tuple(told)


def scale_words(scale: NoiseScale) -> str:
    if scale.value is None:
        return "beyond measure" if scale.low is None else f"above {about(scale.low)} examples"
    low, high = about(scale.low or 0.0), "no upper end" if scale.high is None else about(scale.high)
    return f"{about(scale.value)} examples ({low} to {high})"


def about(value: float) -> str:
    """Two digits, without powers of ten."""
    return f"{float(f'{value:.2g}'):,.10g}"


def gib(count: int) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.2g} MiB"
