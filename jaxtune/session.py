"""A prepared experiment on devices: parameters loaded, phases built, batches fed, evaluations run, checkpoints taken and restored.

`run.py` tells the story; this is the machinery it moves. Nothing here prints or knows the run folder's files except its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.checkpoint.store import Restored, Store
from jaxtune.core.errors import ConfigError
from jaxtune.core.weighted import Weighted
from jaxtune.data.batch import collate
from jaxtune.data.augment import device_part, host_part
from jaxtune.data.feed import Feed
from jaxtune.data.pipeline import HostBatch, batches
from jaxtune.data.plan import Plan
from jaxtune.evaluation.evaluate import Evaluated, Evaluator
from jaxtune.layers import stack
from jaxtune.layers.dropout import Dropout
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.load import Plan as LoadPlan
from jaxtune.models.load import load, maker, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.placement import Placement
from jaxtune.prepare import Prepared
from jaxtune.training.compile import Memory, check_fits, device_memory, flops, memory
from jaxtune.training.loop import Progress
from jaxtune.training.parameters import choose
from jaxtune.training.phase import Phase
from jaxtune.training.stage import Depth, Stage, build_stage
from jaxtune.training.state import TrainState, abstract, from_arrays, recut_params, to_arrays


@dataclass
class Session:
    """One run in memory.

    Attributes:
        prepared: the experiment and its data.
        loading: which parameters come from the base and which start fresh.
        trained: per phase, the per-layer names that train in it.
        stage: the phase that is running; None before the first.
    """

    prepared: Prepared
    placement: Placement
    table: Table
    blueprint: Blueprint
    loading: LoadPlan
    trained: tuple[frozenset[str], ...]
    evaluators: dict[tuple[int, ...], Evaluator] = field(default_factory=dict)
    stage: Stage | None = None

    @classmethod
    def open(cls, prepared: Prepared, placement: Placement) -> Session:
        """Matches checkpoint and model and reads every phase's patterns; no tensor is read.

        Raises:
            ModelError: the checkpoint does not fit.
            ConfigError: a phase's pattern matches nothing.
        """
        experiment, family = prepared.experiment, prepared.base.family
        outputs = prepared.task.outputs(prepared.names)
        make = maker(family, outputs, seed=experiment.seed, options=experiment.model.stack(), dtype=experiment.model.dtype)
        blueprint, table = Blueprint.of(make), Table(family.rows())
        same_labels = prepared.names and prepared.base.labels == prepared.names
        new_head = experiment.model.head == "new" or not same_labels
        loading = plan_load(prepared.base, blueprint, table, new_head)
        trained = tuple(choose(blueprint.params, phase.train).names for phase in experiment.phases)
        return cls(prepared, placement, table, blueprint, loading, trained)

    # -- parameters -----------------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> frozenset[str]:
        """Per-layer names of parameters that do not come from the base."""
        return frozenset(name for key in self.loading.fresh for name in stack.names(key))

    def touched(self, phase: int) -> frozenset[str]:
        """Per-layer names that may differ from the base once `phase` runs."""
        return self.fresh.union(*self.trained[: phase + 1])

    def make(self, cuts: tuple[int, ...]) -> Callable[[], nnx.Module]:
        experiment = self.prepared.experiment
        return maker(
            self.prepared.base.family,
            self.prepared.task.outputs(self.prepared.names),
            seed=experiment.seed,
            options=experiment.model.stack(cuts),
            dtype=experiment.model.dtype,
        )

    def shardings(self, blueprint: Blueprint) -> dict[str, Any]:
        return shardings(blueprint, self.table, self.placement)

    def load_base(self) -> tuple[Flat, Flat]:
        """(parameters, variables) from the base: float32 where some phase trains them, compute precision elsewhere."""
        compute = jnp.dtype(self.prepared.experiment.model.dtype)
        masters = frozenset().union(*self.trained)

        def dtype_of(key: str) -> Any:
            if key in self.blueprint.others or not masters.isdisjoint(stack.names(key)):
                return jnp.dtype(jnp.float32)
            return compute

        flat = load(
            self.prepared.base, self.blueprint, self.table, self.loading, self.make(()), self.shardings(self.blueprint), dtype_of
        )
        return {key: flat[key] for key in self.blueprint.params}, {key: flat[key] for key in self.blueprint.others}

    # -- phases ---------------------------------------------------------------------------------------------------------

    def plan(self, number: int) -> Plan:
        """The order of the training batches of a phase."""
        phase = self.prepared.experiment.phases[number]
        seed = int(np.random.SeedSequence([self.prepared.experiment.seed, number]).generate_state(1)[0])
        divisor = self.placement.batch_ways * phase.accumulation
        return self.prepared.plan("train", divisor=divisor, training=True, seed=seed)

    def steps(self, number: int) -> int:
        """Optimizer steps of a phase."""
        phase = self.prepared.experiment.phases[number]
        return phase.steps if phase.steps is not None else max(1, round((phase.epochs or 0) * self.plan(number).steps()))

    def start_phase(self, number: int, params: Mapping[str, jax.Array], variables: Mapping[str, jax.Array], previous: TrainState | None) -> Stage:
        """Builds phase `number`; its state is that before the phase's first step."""
        phase: Phase = self.prepared.experiment.phases[number]
        experiment, family = self.prepared.experiment, self.prepared.base.family
        problems = phase.optimizer.schedule.problems(self.steps(number))
        if problems:
            raise ConfigError([f"phases.{number}.optimizer.{problem}" for problem in problems])
        outputs = self.prepared.task.outputs(self.prepared.names)
        self.stage = build_stage(
            self.make, params, variables, self.shardings, partial(objective, self.prepared.task), phase.optimizer, self.placement,
            patterns=phase.train,
            steps=self.steps(number),
            seed=experiment.seed,
            accumulation=phase.accumulation,
            average=phase.average,
            rates=experiment.model.rates(family),
            augment=device_part(experiment.data.augment, outputs),
            depth=Depth(family.layer_of, family.layers),
            previous=previous,
        )  # fmt: skip
        return self.stage

    def compile(self, stage: Stage, number: int) -> Compiled:
        """Compiles the phase's widest step and compares its memory with the device's.

        Raises:
            ConfigError: it does not fit; with the parts and remedies.
        """
        plan = self.plan(number)
        width = None if plan.widths is None else plan.widths[-1]
        rows = plan.batch_rows(width)
        row = self.prepared.splits["train"].row(0)
        template = collate([row] + [None] * (rows - 1), width)
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.placement.rows()) for name, x in template.items()}
        scalars = self.placement.put(stage.controls(0, 1.0))
        before = stage.step.compile_seconds
        needed = memory(stage.step.prepare(stage.state, batch, scalars))
        check_fits(needed, device_memory(self.placement.mesh.devices.flat[0]), rows, width)
        return Compiled(
            rows, width, stage.step.compile_seconds - before, needed, flops(stage.step.function, stage.state, batch, scalars)
        )

    # -- batches --------------------------------------------------------------------------------------------------------

    @contextmanager
    def feed(self, split: str, plan: Plan, start: int = 0, stop: int | None = None, *, training: bool = False) -> Iterator[Feed]:
        """Batches of a split on the devices, prepared ahead in the background."""
        data = self.prepared.experiment.data
        host = host_part(data.augment, self.prepared.processor) if training else ()
        source = batches(
            self.prepared.splits[split], plan, start=start, stop=stop, seed=self.prepared.experiment.seed, augment=host,
            host=jax.process_index(), hosts=jax.process_count(), workers=data.workers,
        )  # fmt: skip
        with Feed(source, self.place) as feed:
            yield feed

    def place(self, batch: HostBatch) -> OnDevice:
        return OnDevice(self.placement.put_batch(batch.arrays), batch.examples, batch.tokens, batch.arrays["example_id"])

    # -- evaluation -----------------------------------------------------------------------------------------------------

    def evaluator(self, blueprint: Blueprint) -> Evaluator:
        """One evaluator per cutting, so that an evaluation is compiled once."""
        key = tuple(sorted(blueprint.variables))
        if key not in self.evaluators:
            classes = self.prepared.task.outputs(self.prepared.names)
            self.evaluators[key] = Evaluator(blueprint, self.prepared.task, classes, self.placement)
        return self.evaluators[key]

    def evaluate(self, split: str, blueprint: Blueprint, params: Flat, variables: Flat, *, keep: bool = False) -> Evaluated:
        """Metrics of a split, exact whatever the batches."""
        plan = self.prepared.plan(split, divisor=self.placement.batch_ways, training=False)
        with self.feed(split, plan, stop=plan.steps()) as feed:
            return self.evaluator(blueprint)(params, variables, feed, keep=keep)

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def save(self, store: Store, state: TrainState, progress: Progress, metric: float | None, *, wait: bool = False) -> None:
        """Starts a checkpoint: what changes, and a fingerprint of what does not."""
        checkpoint = self.prepared.base.checkpoint
        meta = {
            "progress": progress.to_json(),
            "data": self.prepared.fingerprint,
            "base": None if checkpoint is None else checkpoint.fingerprint,
            "names": list(self.prepared.names),
        }
        store.save(progress.step, to_arrays(state, self.touched(progress.phase)), meta, metric, wait=wait)

    def resume(self, store: Store) -> tuple[Stage, Progress, Restored]:
        """The newest whole checkpoint: its phase built, its numbers put in.

        Raises:
            NoCheckpointError: there is none.
            ConfigError: data or base have changed since.
        """
        latest = store.latest_step
        params, variables = self.load_base()
        for step in reversed(store.steps()):
            progress = Progress(**store.meta(step)["progress"])
            stage = self.start_phase(progress.phase, params, variables, None)
            found = store.restore(step if step != latest else None, abstract(to_arrays(stage.state, self.touched(progress.phase))))
            if found.step == step:
                self.check_unchanged(found.meta)
                stage.state = from_arrays(stage.state, found.arrays)
                return stage, progress, found
        found = store.restore(None, {})  # raises with the reasons
        raise AssertionError(f"step {found.step} was restored without being tried")

    def restore_params(self, store: Store, step: int) -> tuple[Blueprint, Flat, Flat]:
        """(blueprint, parameters, variables) to evaluate at a saved step, whole and uncut, base included."""
        self.check_unchanged(store.meta(step))
        params, variables = self.load_base()
        described = store.arrays(step)
        wanted: dict[str, Any] = {"params": {}, "variables": {}, "average": {}}
        for name, entry in described.items():
            group, _, key = name.partition("/")
            if group in wanted:
                shape = tuple(entry["shape"])
                sharding = self.placement.sharding(self.table.axes(key), shape)
                wanted[group][key] = jax.ShapeDtypeStruct(shape, jnp.dtype(entry["dtype"]), sharding=sharding)
        arrays = store.restore(step, wanted).arrays
        placed = self.shardings(self.blueprint)
        changed = {**arrays["params"], **arrays["average"]}
        params |= recut_params(changed, {k: v for k, v in self.blueprint.params.items() if k in params}, placed)
        # a frozen layer's rows of a stacked array may be missing from the checkpoint: they come from the base
        params |= self.partly(changed, params)
        variables |= recut_params(arrays["variables"], self.blueprint.others, placed)
        return self.blueprint, params, variables

    def partly(self, changed: Flat, params: Flat) -> Flat:
        """Stacked arrays of which a checkpoint holds some layers: those rows put into the base's."""
        out: Flat = {}
        for key, value in changed.items():
            bounds = stack.segment_bounds(key)
            if bounds is None or key in params:
                continue
            whole = next(k for k in params if stack.whole(k) == stack.whole(key))
            target = out.get(whole, params[whole])
            out[whole] = jax.device_put(target.at[bounds[0] : bounds[1] + 1].set(value.astype(target.dtype)), target.sharding)
        return out

    def check_unchanged(self, meta: Mapping[str, Any]) -> None:
        """Raises:
        ConfigError: the data or the base model are not those the checkpoint was made with.
        """
        checkpoint = self.prepared.base.checkpoint
        found = {"data": self.prepared.fingerprint, "base": None if checkpoint is None else checkpoint.fingerprint, "names": list(self.prepared.names)}
        words = {"data": "the data (source, content or transforms)", "base": "the base model's files", "names": "the class names"}
        problems = [f"{words[name]} changed since the checkpoint was made; restore them, or start a new run" for name, value in found.items() if meta.get(name) != value]
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Compiled:
    """The widest step of a phase: its rows and width, what compiling took, bytes on one device, FLOPs over all."""

    rows: int
    width: int | None
    seconds: float
    memory: Memory
    flops: int


@dataclass(frozen=True)
class OnDevice:
    """A batch as loop and evaluator read it."""

    arrays: dict[str, jax.Array]
    examples: int
    tokens: int
    ids: np.ndarray


def objective(task: Any, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
    """A task's loss of one batch, in training."""
    return task.loss(task.predict(model, batch, noise, training=True)["logits"], batch)
