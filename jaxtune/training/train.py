"""`train()`: the loop for research code. Any `nnx.Module`, loss, batches and optax optimizer; freezing, sharding, stopping and resume come along.

No YAML and no model family are needed: a training is an iterator of events, and its `module` is the model as it now is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxtune.checkpoint.store import Store
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError, DivergedError, NoCheckpointError
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import DropoutRates
from jaxtune.parallel.mesh import Mesh
from jaxtune.parallel.placement import Placement
from jaxtune.training.loop import Event, Goal, Progress, Schedule, train_phase
from jaxtune.training.optimizers.base import Optimizer
from jaxtune.training.stage import Stage, build_stage
from jaxtune.training.state import TrainState, abstract, from_arrays, to_arrays
from jaxtune.training.step import Objective
from jaxtune.training.stopping.base import StopRule

HostBatch = Mapping[str, np.ndarray]


@dataclass
class OnDevice:
    """A batch as the loop reads it."""

    arrays: dict[str, jax.Array]
    examples: int
    tokens: int
    ids: Sequence[int] | np.ndarray = ()


@dataclass
class Training:
    """Iterate over it to train; every item is an event (a step, an evaluation, a save, a decision)."""

    stage: Stage
    progress: Progress
    events: Iterator[tuple[Event, Any]]
    load_best: Callable[[], nnx.Module]

    def __iter__(self) -> Iterator[Event]:
        for event, state in self.events:
            self.stage.state = state
            yield event

    @property
    def module(self) -> nnx.Module:
        """The module with the present parameters."""
        return self.stage.module

    @property
    def best_module(self) -> nnx.Module:
        """The module of the best checkpoint.

        Raises:
            NoCheckpointError: there is none: no `checkpoints`, no `evaluate`, or no evaluation yet.
        """
        return self.load_best()

    def finish(self) -> nnx.Module:
        """Trains to the end and returns the module as it is then; the best may have been an earlier one."""
        for _ in self:
            pass
        return self.module


def train(
    module: nnx.Module,
    *,
    loss: Objective,
    batches: Iterable[HostBatch] | Callable[[int], Iterable[HostBatch]],
    optimizer: optax.GradientTransformation | Optimizer,
    steps: int,
    train: Sequence[str] = ("*",),
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    best: tuple[str, str] = ("loss", "min"),
    stopping: Sequence[StopRule] = (),
    accumulation: int = 1,
    dropout: DropoutRates | None = None,
    mesh: Mesh | None = None,
    shardings: Callable[[str, tuple[int, ...]], Sequence[str | None]] | None = None,
    checkpoints: str | Path | None = None,
    save_every: int | None = None,
    seed: int = 0,
) -> Training:
    """Trains your module.

    Args:
        module: any `flax.nnx` module; it is read, not changed.
        loss: (module, batch, noise) -> Weighted, the batch's loss as a sum and the weight it was taken over; noise is a
            `layers.dropout.Dropout` with the rates of `dropout`, or None without them.
        batches: host batches (dicts of arrays whose first axis is the row), or a function from the number of the first batch to them, which
            makes resume exact without replaying. An `example_id` in them names the rows in messages.
        optimizer: an optax transformation, or one of jaxtune's. What a stop rule does to the rate is done to the updates of the former.
        train: patterns of the parameters that train; the others are frozen: no gradient, no optimizer state.
        evaluate: module -> numbers, called every `evaluate_every` steps and at the end.
        best: the number that decides what is best, and "min" or "max".
        shardings: (path, shape) -> logical axes, for more than one device; default: everything replicated.
        checkpoints: a folder; when it already holds a checkpoint of this training, training goes on from there. One that has ended does
            nothing more, unless it ended with its steps and is now given more of them.

    Raises:
        ConfigError: a pattern matches nothing, the mesh does not fit the devices, or a setting would have no effect.
    """
    problems = []
    if best[1] not in ("min", "max"):
        problems.append(f'best: found "{best[1]}"; expected ("name", "min") or ("name", "max")')
    if isinstance(optimizer, Optimizer) and optimizer.layer_decay is not None:
        problems.append("optimizer.layer_decay: train() does not know the layers of your module; leave it out")
    if evaluate is None:
        idle = [name for name, given in (("evaluate_every", evaluate_every), ("stopping", stopping)) if given]
        problems += [f"{name} has no effect without evaluate; pass a function from the module to numbers" for name in idle]
    if checkpoints is None and save_every is not None:
        problems.append("save_every has no effect without checkpoints; pass a folder")
    if problems:
        raise ConfigError(problems)
    placement = (mesh or Mesh()).build()
    blueprint, values = Blueprint.split(module)

    def place(blueprint: Blueprint) -> dict[str, Any]:
        shapes = {**blueprint.params, **blueprint.others}
        if shardings is None:
            return dict.fromkeys(shapes, placement.replicated)
        return {key: placement.sharding(shardings(key, s.shape), s.shape) for key, s in shapes.items()}

    # copies, because every step gives its arrays away
    placed = {key: jax.device_put(jnp.copy(values[key]), sharding) for key, sharding in place(blueprint).items()}
    stage = build_stage(
        lambda cuts: lambda: module,
        {key: placed[key] for key in blueprint.params}, {key: placed[key] for key in blueprint.others},
        place, loss, optimizer, placement, patterns=train, steps=steps, seed=seed, accumulation=accumulation, rates=dropout,
    )  # fmt: skip
    progress = Progress()
    store: Store | None = None
    touched = stage.selection.names

    def read(step: int | None) -> tuple[TrainState, Mapping[str, Any]]:
        assert store is not None
        found = store.restore(step, abstract(to_arrays(stage.state, touched)))
        return from_arrays(stage.state, found.arrays), found.meta

    def restore(step: int | None) -> None:
        stage.state, meta = read(step)
        vars(progress).update(meta["progress"])
        if progress.phase_step > steps:
            raise ConfigError(f"steps: {checkpoints} holds step {progress.phase_step}, found {steps}; expected more, or another folder")
        if progress.ending == "phase" and meta["steps"] == progress.phase_step < steps:
            progress.ending = ""

    if checkpoints is not None:
        store = Store(Path(checkpoints), best="max" if best[1] == "max" else "min")
        if store.steps():
            restore(None)

    def save(state: Any, progress: Progress, metric: float | None) -> None:
        assert store is not None
        store.save(progress.step, to_arrays(state, touched), {"progress": progress.to_json(), "steps": steps}, metric)

    def judge(state: Any) -> Mapping[str, Any]:
        assert evaluate is not None
        numbers = evaluate(stage.blueprint.build(state.evaluated, state.variables))
        if best[0] not in numbers:
            raise ConfigError(
                f'best: evaluate gives no number "{best[0]}"{nearest(best[0], numbers)} (it gives: {", ".join(sorted(numbers))})'
            )
        return {name: value if np.ndim(value) else float(value) for name, value in numbers.items()}

    def load_best() -> nnx.Module:
        if store is None or (step := best_of(store)) is None:
            raise NoCheckpointError("there is no best checkpoint; pass a folder as checkpoints=, and evaluate=")
        state, _ = read(step)
        return stage.blueprint.build(state.evaluated, state.variables)

    def roll_back() -> None:
        """The best checkpoint again with a lower rate; what the rules remember stays, or they would roll back for ever."""
        if store is None or (step := best_of(store)) is None:
            raise DivergedError("a stop rule goes back to the best checkpoint, but there is none; lower the rate, or pass checkpoints=")
        if isinstance(batches, Iterator):
            raise ConfigError(
                "batches: an iterator cannot go back with a stop rule; pass a list, or a function of the first batch's number"
            )
        store.delete_after(step)
        rules, rate_scale = progress.rules, progress.rate_scale * progress.rollback_factor
        restore(step)
        progress.rules, progress.rate_scale, progress.ending = rules, rate_scale, ""

    def events() -> Iterator[tuple[Event, Any]]:
        while progress.ending in ("", "rollback"):
            if progress.ending == "rollback":
                roll_back()
            source = batches(progress.phase_step) if callable(batches) else skip(batches, progress.phase_step)
            yield from train_phase(
                stage.state, stage.step, on_devices(source, placement), stage.controls, placement,
                Schedule(steps, evaluate_every, save_every), progress,
                evaluate=None if evaluate is None else judge,
                goal=Goal(best[0], best[1] == "max"),
                rules=stopping,
                save=None if store is None else save,
            )  # fmt: skip

    return Training(stage, progress, closing(events(), store), load_best)


def best_of(store: Store) -> int | None:
    store.wait()
    return store.best_step


def skip(batches: Iterable[HostBatch], count: int) -> Iterator[HostBatch]:
    iterator = iter(batches)
    for _ in range(count):
        next(iterator, None)
    return iterator


def on_devices(batches: Iterable[HostBatch], placement: Placement) -> Iterator[OnDevice]:
    """Host batches on the devices."""
    for batch in batches:
        rows = len(next(iter(batch.values())))
        tokens = int(np.count_nonzero(batch["segment_ids"])) if "segment_ids" in batch else 0
        yield OnDevice(placement.put_batch(batch), rows, tokens, batch.get("example_id", ()))


def closing(events: Iterator[Any], store: Store | None) -> Iterator[Any]:
    try:
        yield from events
    finally:
        if store is not None:
            store.close()
