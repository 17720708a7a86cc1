"""A model on devices: which parameters come from the base and which from a checkpoint, where they live, how they are evaluated.

It knows no training data, so a finished run can be loaded where only the run folder and the base are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtune.adjust import adjusted, in_force
from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.evaluate import Evaluator
from jaxtune.experiment import Experiment
from jaxtune.layers import stack
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.load import Plan as LoadPlan
from jaxtune.models.load import load, maker, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.placement import Placement
from jaxtune.prepare import Subject
from jaxtune.training.parameters import choose
from jaxtune.training.state import recut_params


@dataclass
class ModelSession:
    """
    Attributes:
        loading: which parameters come from the base and which start fresh.
        trained: per phase, the per-layer names that train in it.
        given: the experiment as the run began, before any adjustment.
    """

    subject: Subject
    placement: Placement
    table: Table
    blueprint: Blueprint
    loading: LoadPlan
    trained: tuple[frozenset[str], ...]
    given: Experiment
    earlier: frozenset[str] = frozenset()  # what trained before an adjustment changed it
    evaluators: dict[tuple[str, ...], Evaluator] = field(default_factory=dict)

    @classmethod
    def open(cls, subject: Subject, placement: Placement) -> Self:
        """Matches checkpoint and model and reads every phase's patterns; no tensor is read.

        Raises:
            ModelError: the checkpoint does not fit.
            ConfigError: a phase's pattern matches nothing.
        """
        experiment, family = subject.experiment, subject.base.family
        outputs = subject.task.outputs(subject.names)
        make = maker(family, outputs, seed=experiment.seed, options=experiment.model.stack(), dtype=experiment.model.dtype)
        blueprint, table = Blueprint.of(make), Table(family.rows())
        same_labels = subject.names and subject.base.labels == subject.names
        new_head = experiment.model.head == "new" or not same_labels
        loading = plan_load(subject.base, blueprint, table, new_head)
        return cls(subject, placement, table, blueprint, loading, trained_names(blueprint, experiment), experiment)

    # -- adjustments ----------------------------------------------------------------------------------------------------

    def adopt(self, adjustments: Sequence[Mapping[str, Any]]) -> None:
        """The experiment as it became by these adjustments.

        Raises:
            ConfigError: an adjustment does not fit the experiment.
        """
        experiment, earlier = self.given, frozenset[str]()
        for adjustment in adjustments:
            earlier |= trained_names(self.blueprint, experiment)[adjustment["phase"]]
            experiment = adjusted(experiment, adjustment["changes"], adjustment["phase"])
        trained = trained_names(self.blueprint, experiment)
        self.subject, self.trained, self.earlier = replace(self.subject, experiment=experiment), trained, earlier

    # -- parameters -----------------------------------------------------------------------------------------------------

    @property
    def fresh(self) -> frozenset[str]:
        """Per-layer names of parameters that do not come from the base."""
        return frozenset(name for key in self.loading.fresh for name in stack.names(key))

    @property
    def masters(self) -> frozenset[str]:
        """Per-layer names of parameters kept in float32, because some phase trains them."""
        return self.earlier.union(*self.trained)

    def touched(self, phase: int) -> frozenset[str]:
        """Per-layer names that may differ from the base once `phase` runs."""
        return self.fresh.union(self.earlier, *self.trained[: phase + 1])

    def make(self, cuts: tuple[int, ...]) -> Callable[[], nnx.Module]:
        experiment = self.subject.experiment
        return maker(
            self.subject.base.family,
            self.subject.task.outputs(self.subject.names),
            seed=experiment.seed,
            options=experiment.model.stack(cuts),
            dtype=experiment.model.dtype,
        )

    def shardings(self, blueprint: Blueprint) -> dict[str, Any]:
        return shardings(blueprint, self.table, self.placement)

    def load_base(self) -> tuple[Flat, Flat]:
        """(parameters, variables) from the base: float32 where some phase trains them, compute precision elsewhere."""
        compute, masters = jnp.dtype(self.subject.experiment.model.dtype), self.masters

        def dtype_of(key: str) -> Any:
            if key in self.blueprint.others or not masters.isdisjoint(stack.names(key)):
                return jnp.dtype(jnp.float32)
            return compute

        flat = load(self.subject.base, self.blueprint, self.table, self.loading, self.make(()), self.shardings(self.blueprint), dtype_of)
        return {key: flat[key] for key in self.blueprint.params}, {key: flat[key] for key in self.blueprint.others}

    # -- evaluation and checkpoints -------------------------------------------------------------------------------------

    def evaluator(self, blueprint: Blueprint) -> Evaluator:
        """One evaluator per cutting, so that an evaluation is compiled once."""
        key = tuple(sorted(blueprint.variables))
        if key not in self.evaluators:
            classes = self.subject.task.outputs(self.subject.names)
            self.evaluators[key] = Evaluator(blueprint, self.subject.task, classes, self.placement)
        return self.evaluators[key]

    def restore_params(self, store: Store, step: int) -> tuple[Blueprint, Flat, Flat]:
        """(blueprint, parameters, variables) to evaluate at a saved step, whole and uncut, base included."""
        meta = store.meta(step)
        self.check_unchanged(meta)
        self.adopt(in_force(meta["progress"]))
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
        ConfigError: the base model (or, in a training, the data) are not those the checkpoint was made with.
        """
        words = {"data": "the data (source, content or transforms)", "base": "the base model's files", "names": "the class names"}
        problems = [
            f"{words[name]} changed since the checkpoint was made; restore them, or start a new run"
            for name, value in self.identity().items()
            if meta.get(name) != value
        ]
        if problems:
            raise ConfigError(problems)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a checkpoint is used again."""
        checkpoint = self.subject.base.checkpoint
        return {"base": None if checkpoint is None else checkpoint.fingerprint, "names": list(self.subject.names)}


def trained_names(blueprint: Blueprint, experiment: Experiment) -> tuple[frozenset[str], ...]:
    """Per phase, the per-layer names that train in it.

    Raises:
        ConfigError: patterns of a phase match nothing; of all phases at once.
    """
    trained: list[frozenset[str]] = []
    problems: list[str] = []
    for number, phase in enumerate(experiment.phases):
        try:
            trained.append(choose(blueprint.params, phase.train, f"phases.{number}.train").names)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return tuple(trained)
