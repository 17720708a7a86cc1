"""`train()`: the loop for research code. Any `nnx.Module`, loss, batches and optax optimizer; freezing, sharding, stopping and resume come along.

No YAML and no model family are needed: a training is an iterator of events, and its `module` is the model as it now is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import ConfigError
from jaxtune.models.blueprint import Blueprint
from jaxtune.parallel.mesh import Mesh
from jaxtune.parallel.placement import Placement
from jaxtune.training.loop import Event, Goal, Progress, Schedule, train_phase
from jaxtune.training.optimizers.base import Optimizer
from jaxtune.training.stage import Stage, build_stage
from jaxtune.training.state import abstract, from_arrays, to_arrays
from jaxtune.training.step import Objective
from jaxtune.training.stopping.base import StopRule

HostBatch = Mapping[str, np.ndarray]


@dataclass
class OnDevice:
    """A batch as the loop reads it."""

    arrays: dict[str, jax.Array]
    examples: int
    tokens: int
    ids: Sequence[int] = ()


@dataclass
class Training:
    """Iterate over it to train; every item is an event (a step, an evaluation, a save, a decision)."""

    stage: Stage
    progress: Progress
    events: Iterator[tuple[Event, Any]]

    def __iter__(self) -> Iterator[Event]:
        for event, state in self.events:
            self.stage.state = state
            yield event

    @property
    def module(self) -> nnx.Module:
        """The module with the present parameters."""
        return self.stage.module

    def finish(self) -> nnx.Module:
        """Trains to the end and returns the module."""
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
    evaluate: Callable[[nnx.Module], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    best: tuple[str, str] = ("loss", "min"),
    stopping: Sequence[StopRule] = (),
    accumulation: int = 1,
    mesh: Mesh | None = None,
    shardings: Callable[[str, tuple[int, ...]], Sequence[str | None]] | None = None,
    checkpoints: str | Path | None = None,
    save_every: int | None = None,
    seed: int = 0,
) -> Training:
    """Trains your module.

    Args:
        module: any `flax.nnx` module; it is read, not changed.
        loss: (module, batch, noise) -> Weighted, the batch's loss as a sum and the weight it was taken over; noise is None.
        batches: host batches (dicts of arrays whose first axis is the row), or a function from the number of the first batch to them, which
            makes resume exact without replaying.
        optimizer: an optax transformation, or one of jaxtune's.
        train: patterns of the parameters that train; the others are frozen: no gradient, no optimizer state.
        evaluate: module -> numbers, called every `evaluate_every` steps and at the end.
        best: the number that decides what is best, and "min" or "max".
        shardings: (path, shape) -> logical axes, for more than one device; default: everything replicated.
        checkpoints: a folder; when it already holds a checkpoint of this training, training goes on from there.

    Raises:
        ConfigError: a pattern matches nothing, or the mesh does not fit the devices.
    """
    if best[1] not in ("min", "max"):
        raise ConfigError(f'best: found "{best[1]}"; expected ("name", "min") or ("name", "max")')
    placement = (mesh or Mesh()).build()
    blueprint, values = Blueprint.split(module)

    def place(blueprint: Blueprint) -> dict[str, Any]:
        shapes = {**blueprint.params, **blueprint.others}
        if shardings is None:
            return dict.fromkeys(shapes, placement.replicated)
        return {key: placement.sharding(shardings(key, s.shape), s.shape) for key, s in shapes.items()}

    params = {key: jax.device_put(values[key], sharding) for key, sharding in place(blueprint).items() if key in blueprint.params}
    variables = {key: jax.device_put(values[key], sharding) for key, sharding in place(blueprint).items() if key in blueprint.others}
    stage = build_stage(
        lambda cuts: lambda: module, params, variables, place, loss, optimizer, placement,
        patterns=train, steps=steps, seed=seed, accumulation=accumulation,
    )  # fmt: skip
    progress = Progress()
    store: Store | None = None
    touched = stage.selection.names
    if checkpoints is not None:
        store = Store(Path(checkpoints), best="max" if best[1] == "max" else "min")
        if store.steps():
            found = store.restore(None, abstract(to_arrays(stage.state, touched)))
            stage.state = from_arrays(stage.state, found.arrays)
            progress = Progress(**found.meta["progress"])

    def save(state: Any, progress: Progress, metric: float | None) -> None:
        assert store is not None
        store.save(progress.step, to_arrays(state, touched), {"progress": progress.to_json()}, metric)

    def judge(state: Any) -> Mapping[str, Any]:
        assert evaluate is not None
        return evaluate(stage.blueprint.build(state.evaluated, state.variables))

    source = batches(progress.phase_step) if callable(batches) else skip(batches, progress.phase_step)
    events = train_phase(
        stage.state, stage.step, placed(source, placement), stage.controls, placement,
        Schedule(steps, evaluate_every, save_every), progress,
        evaluate=None if evaluate is None else judge,
        goal=Goal(best[0], best[1] == "max"),
        rules=stopping,
        save=None if store is None else save,
    )  # fmt: skip
    return Training(stage, progress, closing(events, store))


def skip(batches: Iterable[HostBatch], count: int) -> Iterator[HostBatch]:
    iterator = iter(batches)
    for _ in range(count):
        next(iterator, None)
    return iterator


def placed(batches: Iterable[HostBatch], placement: Placement) -> Iterator[OnDevice]:
    """Host batches on the devices."""
    for batch in batches:
        rows = len(next(iter(batch.values())))
        tokens = int(np.count_nonzero(batch["segment_ids"])) if "segment_ids" in batch else 0
        yield OnDevice(placement.put_batch(batch), rows, tokens)


def closing(events: Iterator[Any], store: Store | None) -> Iterator[Any]:
    try:
        yield from events
    finally:
        if store is not None:
            store.close()
