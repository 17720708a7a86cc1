"""A prepared experiment on devices: parameters loaded, phases built, batches fed, evaluations run, checkpoints taken and restored.

`run.py` tells the story; this is the machinery it moves. Nothing here prints or knows the run folder's files except its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.adjust import Change, in_force
from jaxtune.checkpoint.store import Restored, Store
from jaxtune.core.errors import ConfigError
from jaxtune.core.weighted import Weighted
from jaxtune.data.augment import device_part, host_part
from jaxtune.data.batch import collate
from jaxtune.data.feed import Feed
from jaxtune.data.pipeline import HostBatch, batches, template
from jaxtune.data.plan import Plan
from jaxtune.evaluation.evaluate import Evaluated
from jaxtune.evaluation.features import FeatureTable, pooled_features
from jaxtune.evaluation.generation import choose_questions
from jaxtune.layers.dropout import Dropout
from jaxtune.model_session import ModelSession
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.prepare import Prepared
from jaxtune.training.compile import Memory, check_fits, device_memory, memory, shapes
from jaxtune.training.loop import Progress
from jaxtune.training.parameters import groups
from jaxtune.training.phase import Phase
from jaxtune.training.stage import Depth, Programs, Stage, build_stage
from jaxtune.training.state import TrainState, abstract, from_arrays, overlay, to_arrays
from jaxtune.training.stopping.base import StopRule


@dataclass
class Session(ModelSession):
    """One training in memory: a model session with data and phases.

    Attributes:
        programs: what phases have compiled, by `program_key`; a phase that begins again (rollback, search) uses it.
    """

    programs: MutableMapping[Any, Programs] = field(default_factory=dict)

    @property
    def prepared(self) -> Prepared:
        """The experiment and its data."""
        assert isinstance(self.subject, Prepared), "a training needs a prepared experiment"
        return self.subject

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "data": self.prepared.fingerprint}

    # -- phases ---------------------------------------------------------------------------------------------------------

    def plan(self, number: int, order: int = 0) -> Plan:
        """The order of the training batches of a phase; another one, each time that an adjustment changed the batches."""
        phase = self.prepared.experiment.phases[number]
        entropy = [self.prepared.experiment.seed, number, *([order] if order else [])]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        divisor = self.placement.batch_ways * phase.accumulation
        return self.prepared.plan("train", divisor=divisor, training=True, seed=seed)

    def steps(self, number: int, progress: Progress | None = None) -> int:
        """Optimizer steps of a phase; with `progress`, of the phase that it is in, as adjusted."""
        phase = self.prepared.experiment.phases[number]
        here = progress if progress is not None and progress.phase == number else Progress()
        if phase.steps is not None:
            return phase.steps
        rest = (phase.epochs or 0) - here.order_epochs
        return here.order_start + max(1, round(rest * self.plan(number, here.order).steps()))

    def check(self) -> None:
        """What must hold before the first step, found before anything is written.

        Raises:
            ConfigError: batches that do not divide over the devices, schedules that do not fit their phases, patterns of
                no_decay that match nothing, trackers that cannot work, answers that no row has room for.
        """
        experiment = self.prepared.experiment
        problems = [problem for tracker in experiment.tracking for problem in tracker.problems()]
        try:
            for split in self.prepared.splits:
                self.prepared.plan(split, divisor=self.placement.batch_ways, training=False)
        except ConfigError as error:
            problems += error.problems
        for number, phase in enumerate(experiment.phases):
            try:
                problems += [f"phases.{number}.optimizer.{problem}" for problem in phase.optimizer.schedule.problems(self.steps(number))]
            except ConfigError as error:
                problems += error.problems
            try:
                groups(sorted(self.trained[number]), phase.optimizer)
            except ConfigError as error:
                problems += [f"phases.{number}.{problem}" for problem in error.problems]
        answers, limit = experiment.evaluation.answers, self.prepared.base.family.max_tokens
        for split in ("validation", "test"):
            if answers is None or split not in self.prepared.splits:
                continue
            try:
                choose_questions(self.prepared.splits[split], answers, max_tokens=limit, seed=experiment.seed)
            except ConfigError as error:
                problems += [f"evaluation.answers ({split}): {problem}" for problem in error.problems]
        if problems:
            raise ConfigError(dict.fromkeys(problems))

    def start_phase(
        self,
        number: int,
        params: Mapping[str, jax.Array],
        variables: Mapping[str, jax.Array],
        previous: TrainState | None,
        progress: Progress | None = None,
    ) -> Stage:
        """Builds phase `number`; its state is that before the phase's first step."""
        phase: Phase = self.prepared.experiment.phases[number]
        experiment, family = self.prepared.experiment, self.prepared.base.family
        key = self.program_key(number)
        stage = build_stage(
            self.make, params, variables, self.shardings, partial(objective, self.prepared.task), phase.optimizer, self.placement,
            patterns=phase.train,
            steps=self.steps(number, progress),
            seed=experiment.seed,
            accumulation=phase.accumulation,
            average=phase.average,
            rates=experiment.model.rates(family),
            adapter_dropout=0.0 if experiment.model.adapter is None else experiment.model.adapter.dropout_rate,
            augment=device_part(experiment.data.augment, self.prepared.classes),
            depth=Depth(family.layer_of, family.layers),
            previous=previous,
            programs=self.programs.get(key),
        )  # fmt: skip
        self.programs[key] = stage.programs
        return stage

    def program_key(self, number: int) -> tuple[Any, ...]:
        """All that the programs of a phase depend on: phases with equal keys differ in traced scalars and schedules alone."""
        experiment, prepared = self.prepared.experiment, self.prepared
        phase, model = experiment.phases[number], experiment.model
        return (
            model.base, model.dtype, model.stack(), model.rates(prepared.base.family) is None, model.quantize,
            None if model.adapter is None else model.adapter.structure(), repr(prepared.task), prepared.names,
            None if model.dtype == "float32" else self.masters,  # frozen parameters are float32 where another phase trains them
            experiment.data.augment, experiment.mesh, phase.train, phase.accumulation, phase.average is None, repr(phase.optimizer.structure()),
        )  # fmt: skip

    def compile(self, stage: Stage, number: int) -> Compiled:
        """Compiles the phase's widest step and compares its memory with the device's.

        Raises:
            ConfigError: it does not fit; with the parts and remedies.
        """
        plan = self.plan(number)
        width = None if plan.widths is None else plan.widths[-1]
        rows = plan.batch_rows(width)
        arrays = collate([template(self.prepared.splits["train"], plan)] + [None] * (rows - 1), width)
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.placement.rows()) for name, x in arrays.items()}
        scalars = self.placement.put(stage.controls(0, 1.0))
        before = stage.step.compile_seconds
        needed = memory(stage.step.prepare(stage.state, batch, scalars))
        check_fits(needed, device_memory(self.placement.mesh.devices.flat[0]), rows, width)
        return Compiled(rows, width, stage.step.compile_seconds - before, needed, stage.step.flops[shapes(batch)])

    # -- batches --------------------------------------------------------------------------------------------------------

    @contextmanager
    def feed(self, split: str, plan: Plan, start: int = 0, stop: int | None = None, *, training: bool = False) -> Iterator[Feed]:
        """Batches of a split on the devices, prepared ahead in the background."""
        data = self.prepared.experiment.data
        host = host_part(data.augment, self.prepared.processor) if training else ()
        source = batches(
            self.prepared.splits[split], plan, start=start, stop=stop, seed=plan.seed, augment=host,
            host=jax.process_index(), hosts=jax.process_count(), workers=data.workers,
        )  # fmt: skip
        with Feed(source, self.place) as feed:
            yield feed

    def place(self, batch: HostBatch) -> OnDevice:
        return OnDevice(self.placement.put_batch(batch.arrays), batch.examples, batch.tokens, batch.ids)

    # -- evaluation -----------------------------------------------------------------------------------------------------

    def evaluate(self, split: str, blueprint: Blueprint, params: Flat, variables: Flat, *, keep: bool = False) -> Evaluated:
        """Metrics of a split, exact whatever the batches."""
        plan = self.prepared.plan(split, divisor=self.placement.batch_ways, training=False)
        with self.feed(split, plan, stop=plan.steps()) as feed:
            return self.evaluator(blueprint)(params, variables, feed, keep=keep)

    def base_features(self, split: str) -> FeatureTable:
        """What the base model, before any training here, makes of the examples of a split."""
        plan = self.prepared.plan(split, divisor=self.placement.batch_ways, training=False)
        params, variables = self.load_base()
        with self.feed(split, plan, stop=plan.steps()) as feed:
            return pooled_features(self.blueprint, self.prepared.task, self.placement, params, variables, feed)

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def save(self, store: Store, state: TrainState, progress: Progress, metric: float | None, *, wait: bool = False) -> None:
        """Starts a checkpoint: what changes, and a fingerprint of what does not."""
        meta = {"progress": progress.to_json(), **self.identity()}
        store.save(progress.step, to_arrays(state, self.touched(progress.phase)), meta, metric, wait=wait)

    def resume(self, store: Store) -> tuple[Stage, Progress, Restored]:
        """The newest whole checkpoint: its phase built, its numbers put in.

        Raises:
            NoCheckpointError: there is none.
            ConfigError: data or base have changed since.
        """
        stages: dict[tuple[int, int], Stage] = {}

        def wanted(step: int) -> Any:
            meta = store.meta(step)
            self.check_unchanged(meta)
            progress = Progress(**meta["progress"])
            adjustments = in_force(meta["progress"])
            known = (progress.phase, len(adjustments))
            if known not in stages:
                stages.clear()
                self.adopt(adjustments)
                params, variables = self.load_base()
                stages[known] = self.start_phase(progress.phase, params, variables, None, progress)
            return abstract(to_arrays(stages[known].state, self.touched(progress.phase)))

        found = store.restore(None, wanted, complete=True)
        (stage,) = stages.values()
        stage.state = from_arrays(stage.state, found.arrays)
        return stage, Progress(**found.meta["progress"]), found

    # -- adjustments ----------------------------------------------------------------------------------------------------

    def consider(self, progress: Progress, words: Sequence[str]) -> dict[str, Any]:
        """One more adjustment, as `progress.adjustments` holds it; nothing changes.

        Raises:
            ConfigError: it does not fit the run as it is now.
        """
        adjustment = {"step": progress.step, "phase": progress.phase, "changes": list(words)}
        trial = replace(self)
        trial.adopt([*progress.adjustments, adjustment])
        trial.check()
        return adjustment

    def adjust(self, stage: Stage, progress: Progress) -> Stage:
        """The phase goes on as its newest adjustments want it; `progress.ending` is "adjust" before and "" (or how it ends) afterwards.

        The new stage is built as a resume would build it, so that both train on bit for bit.
        """
        before, waiting = self.prepared.experiment, progress.adjustments[len(in_force(progress.to_json())) :]
        touched, number = self.touched(progress.phase), progress.phase
        done = 0.0 if progress.batch == 0 else progress.batch / self.plan(number, progress.order).steps()
        self.adopt(progress.adjustments)
        experiment = self.prepared.experiment
        progress.ending = ""
        for adjustment in waiting:
            change = Change.read(adjustment["changes"])
            progress.rate_scale *= change.rate_scale
            progress.ending = change.stop or progress.ending
        if (before.data.batch_size, before.data.batch_tokens) != (experiment.data.batch_size, experiment.data.batch_tokens):
            progress.order_epochs += done
            progress.order, progress.order_start = progress.order + 1, progress.phase_step
        progress.rules = remembered(before.phases[number].stopping, experiment.phases[number].stopping, progress.rules)
        if not progress.ending and progress.phase_step >= self.steps(number, progress):
            progress.ending = "phase"
        old = stage.state
        fresh = self.start_phase(number, *self.load_base(), old, progress)
        trainable = overlay(fresh.state.trainable, old.params, touched.__contains__)
        average = overlay({key: jnp.copy(trainable[key]) for key in fresh.state.average}, old.average, lambda name: True)
        fresh.state = replace(
            fresh.state,
            trainable=trainable,
            frozen=overlay(fresh.state.frozen, old.params, touched.__contains__),
            variables=overlay(fresh.state.variables, old.variables, lambda name: True),
            average=average,
            skipped=old.skipped,
            skipped_in_a_row=old.skipped_in_a_row,
        )
        return fresh


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
    return task.objective(model, batch, noise)


def remembered(before: Sequence[StopRule], after: Sequence[StopRule], memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the rules of a phase remember after an adjustment: a rule of the same kind in the same place goes on, others start."""
    known = dict(enumerate(memory))
    same = [type(old) is type(new) for old, new in zip(before, after, strict=False)]
    return [known[i] if i < len(same) and same[i] and i in known else rule.start() for i, rule in enumerate(after)]
