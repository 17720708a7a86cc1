"""A model on devices: which parameters come from the base and which from a checkpoint, where they live, how they are evaluated.

It knows no training data, so a finished run can be loaded where only the run folder and the base are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.adjust import adjusted, in_force
from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import ConfigError
from jaxtune.core.paths import matches
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.evaluation.evaluate import Evaluator
from jaxtune.experiment import Experiment
from jaxtune.layers import stack
from jaxtune.models.adapters import PARTS, Attachment, forms_of, sizes
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.generate import Generator
from jaxtune.models.generation import Generation
from jaxtune.models.load import Plan as LoadPlan
from jaxtune.models.load import load, maker, plan_load, shardings
from jaxtune.models.peft_write import unsaveable
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
        attachment: the adapter, ready to be attached.
        numbers: what an adapter that was trained before starts from, by per-layer name.
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
    generators: dict[Any, Generator] = field(default_factory=dict)
    attachment: Attachment | None = None
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(cls, subject: Subject, placement: Placement) -> Self:
        """Matches checkpoint and model and reads every phase's patterns; no tensor is read.

        Raises:
            ModelError: the checkpoint does not fit.
            ConfigError: a phase's pattern matches nothing, or picks what is quantized; an adapter that nothing trains or that cannot be
                exported as wanted; a fresh head for a language model.
        """
        experiment, family = subject.experiment, subject.base.family
        adapter = experiment.model.adapter
        attachment = None if adapter is None else adapter.open(subject.base, has_head=True)
        make = module_of(subject, attachment)
        blueprint, table = Blueprint.of(make), Table(family.rows())
        loading = plan_load(subject.base, blueprint, table, has_new_head(subject))
        session = cls(subject, placement, table, blueprint, loading, trained_names(blueprint, experiment), experiment)
        if attachment is not None:
            session.attachment = attachment
            session.numbers = attachment.numbers(sizes(session.abstract), per_layer_shapes(blueprint.params))
            session.check_adapter()
        return session

    @cached_property
    def abstract(self) -> nnx.Module:
        """The module without its numbers."""
        return nnx.eval_shape(self.make(()))

    def check_adapter(self) -> None:
        """Raises:
        ConfigError: no phase trains the adapter, or it cannot be exported as wanted.
        """
        adapter = self.subject.experiment.model.adapter
        assert adapter is not None
        trained = frozenset[str]().union(*self.trained)
        added = {name for name in self.fresh if name.rpartition(".")[2] in PARTS}
        if not self.numbers and added.isdisjoint(trained):
            raise ConfigError(
                f'model.adapter: no phase trains it (its first parameter: {min(added)}); write e.g. phases.0.train: ["*.lora_*"]'
            )
        if adapter.export != "merged":
            problems = unsaveable(self.table, sizes(self.abstract), forms_of(self.abstract), trained - added)
            if problems:
                raise ConfigError(problems)

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
        return frozenset(name for key in self.loading.fresh for name in stack.names(key)).union(self.numbers)

    @property
    def masters(self) -> frozenset[str]:
        """Per-layer names of parameters kept in float32, because some phase trains them."""
        return self.earlier.union(*self.trained)

    def touched(self, phase: int) -> frozenset[str]:
        """Per-layer names that may differ from the base once `phase` runs."""
        return self.fresh.union(self.earlier, *self.trained[: phase + 1])

    def make(self, cuts: tuple[int, ...]) -> Callable[[], nnx.Module]:
        return module_of(self.subject, self.attachment, cuts)

    def shardings(self, blueprint: Blueprint) -> dict[str, Any]:
        return shardings(blueprint, self.table, self.placement)

    def load_base(self) -> tuple[Flat, Flat]:
        """(parameters, variables) from the base: float32 where some phase trains them and in adapters, compute precision elsewhere."""
        compute, masters = jnp.dtype(self.subject.experiment.model.dtype), self.masters

        def dtype_of(key: str) -> Any:
            if key in self.blueprint.others or key.rpartition(".")[2] in PARTS or not masters.isdisjoint(stack.names(key)):
                return jnp.dtype(jnp.float32)
            return compute

        placed = self.shardings(self.blueprint)
        flat = load(self.subject.base, self.blueprint, self.table, self.loading, self.make(()), placed, dtype_of, self.numbers)
        return {key: flat[key] for key in self.blueprint.params}, {key: flat[key] for key in self.blueprint.others}

    # -- evaluation and checkpoints -------------------------------------------------------------------------------------

    def evaluator(self, blueprint: Blueprint) -> Evaluator:
        """One evaluator per cutting, so that an evaluation is compiled once."""
        key = tuple(sorted(blueprint.variables))
        if key not in self.evaluators:
            self.evaluators[key] = Evaluator(blueprint, self.subject.task, self.subject.classes, self.placement)
        return self.evaluators[key]

    def generator(self, blueprint: Blueprint, settings: Generation, batch_size: int) -> Generator:
        """What writes answers with a cutting's parameters; one per cutting and settings, so that it compiles once."""
        tokenizer, base = self.subject.processor.tokenizer, self.subject.base
        assert tokenizer is not None
        key = (tuple(sorted(blueprint.variables)), settings, batch_size)
        if key not in self.generators:
            ends = SpecialTokens.load(tokenizer).stops
            dtype = jnp.dtype(self.subject.experiment.model.dtype)
            self.generators[key] = Generator(blueprint, settings, ends, self.placement, dtype, base.family.max_tokens, batch_size)
        return self.generators[key]

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
            for whole in [k for k in params if stack.whole(k) == stack.whole(key)]:
                first, last = stack.segment_bounds(whole) or bounds
                low, high = max(first, bounds[0]), min(last, bounds[1])
                if low <= high:
                    target, rows = out.get(whole, params[whole]), value[low - bounds[0] : high + 1 - bounds[0]]
                    made = target.at[low - first : high + 1 - first].set(rows.astype(target.dtype))
                    out[whole] = jax.device_put(made, target.sharding)
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


def module_of(subject: Subject, attachment: Attachment | None, cuts: tuple[int, ...] = ()) -> Callable[[], nnx.Module]:
    """A function that builds the subject's module, cut there and where its adapters need it."""
    model = subject.experiment.model
    return maker(
        subject.base.family, subject.outputs, seed=subject.experiment.seed, options=model.stack(cuts), dtype=model.dtype,
        adapter=attachment, quantize=None if model.quantize == "none" else model.quantize,
    )  # fmt: skip


def has_new_head(subject: Subject) -> bool:
    """Whether the head starts fresh: wanted so, or the checkpoint's has other labels. A language model's is a part of its base.

    Raises:
        ConfigError: a fresh head is wanted for a language model.
    """
    wanted = subject.experiment.model.head == "new"
    if subject.outputs == "language":
        if wanted:
            raise ConfigError("model.head: found new; a language model predicts tokens with its base's own head; leave it out")
        return False
    return wanted or not (subject.names and subject.base.labels == subject.names)


def per_layer_shapes(params: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, tuple[int, ...]]:
    """Shape by per-layer name."""
    return {name: shape.shape[1:] if stack.is_stacked(key) else shape.shape for key, shape in params.items() for name in stack.names(key)}


def trained_names(blueprint: Blueprint, experiment: Experiment) -> tuple[frozenset[str], ...]:
    """Per phase, the per-layer names that train in it.

    Raises:
        ConfigError: patterns of a phase match nothing, or a kernel that is quantized; of all phases at once.
    """
    kernels = [name.removesuffix(".codes") for key in blueprint.params if key.endswith(".kernel.codes") for name in stack.names(key)]
    trained: list[frozenset[str]] = []
    problems: list[str] = []
    for number, phase in enumerate(experiment.phases):
        try:
            trained.append(choose(blueprint.params, phase.train, f"phases.{number}.train").names)
        except ConfigError as error:
            problems += error.problems
        frozen = [name for name in kernels if any(matches(name + end, phase.train) for end in ("", ".codes", ".scales"))]
        if frozen:
            problems.append(
                f"phases.{number}.train: {', '.join(phase.train)} picks {frozen[0]}{f' and {len(frozen) - 1} more' if frozen[1:] else ''}, "
                f"which model.quantize: {experiment.model.quantize} keeps frozen; train an adapter (model.adapter, "
                'train: ["*.lora_*"]), take the kernels out ("!*.kernel*") or leave model.quantize out'
            )
    if problems:
        raise ConfigError(problems)
    return tuple(trained)
