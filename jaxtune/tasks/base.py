"""What a task is: how records become examples, what the head must put out, the loss, the predictions, the metrics.

A task knows neither a model family nor the loop; it speaks in the keys of a batch and in what its head gives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jaxtune.core.component import Component, OneOf, load_class, nearest
from jaxtune.core.weighted import Weighted
from jaxtune.data.checks import Parts, Problem
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Records
from jaxtune.layers.dropout import Dropout
from jaxtune.metrics import METRICS
from jaxtune.metrics.base import Metric
from jaxtune.models.family import Domain, Outputs
from jaxtune.models.load import Base

Predictions = dict[str, jax.Array]
Columns = Mapping[str, Sequence[Any]]  # of the records, one value per row


def by_task() -> Any:
    """Stands where a validator fills in the default, so that the setting need not be given."""


@dataclass(frozen=True)
class Encoded:
    """Examples ready for batches, and what was found on the way.

    Attributes:
        examples: one row per record, in the order of the records; empty rows stand for dropped ones.
        kept: numbers of the records that were not dropped.
        report: facts for `check` and the report (lengths, cuts, drops).
    """

    examples: Examples
    kept: np.ndarray
    report: Mapping[str, Any]


class Task(Component):
    """Base of all tasks."""

    domain: ClassVar[Domain]
    generates: ClassVar[bool] = False  # whether the model can be asked to write
    tells: ClassVar[tuple[str, ...]] = ()  # what `assess` says of examples, for metrics to read; () where it is not known
    packs: ClassVar[bool] = False  # whether several examples can share a row: nothing belongs to one as a whole

    metrics: tuple[Annotated[Metric, OneOf(METRICS)], ...] = Field(default_factory=by_task, description="metrics by kind; default by task")
    best: str = Field(default_factory=by_task, description="the metric that decides which checkpoint is best; default by task")

    @model_validator(mode="after")
    def metrics_fit(self) -> Task:
        strange = [metric for metric in self.metrics if self.tells and not {*metric.reads} <= {*self.tells}]
        if strange:
            fitting = ", ".join(kind for kind, where in METRICS.items() if {*load_class(where).reads} <= {*self.tells})
            names = ", ".join(type(metric).__name__ for metric in strange)
            raise ValueError(f"metrics: {names} cannot be measured in {type(self).__name__}; those that can: {fitting}")
        return self

    @model_validator(mode="after")
    def best_is_measured(self) -> Task:
        names = self.metric_names
        if self.best not in names:
            raise ValueError(f'best: "{self.best}" is not measured{nearest(self.best, list(names))} (measured: {", ".join(sorted(names))})')
        return self

    # -- what it reads --------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The record columns that make an example what it is: two rows with equal content are copies."""

    @property
    def light(self) -> tuple[str, ...]:
        """Columns whose values are looked at before anything is encoded: labels, and texts that must hold something."""
        return ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every record column that it reads."""
        return tuple(dict.fromkeys((*self.content, *self.light)))

    @property
    def needs_reference(self) -> bool:
        """Whether its batches hold what the model said before training (`reference.py`)."""
        return False

    def row_tokens(self, limit: int) -> int:
        """Tokens of the longest row, of examples that `max_tokens` limits."""
        return limit

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns that it learns to give, which new records need not have."""
        return ()

    def from_text(self, text: str) -> dict[str, Any]:
        """A record that asks about one text."""
        return {self.content[0]: text}

    @abstractmethod
    def processor(self, base: Base) -> Processor:
        """The tokenizer or image processor that belongs to the base.

        Raises:
            ConfigError: its files are missing, or it and the model do not fit each other.
        """

    def bind(self, processor: Processor) -> Self:
        """This task with whatever `prepare` needs of the processor."""
        del processor
        return self

    def check(self, columns: Columns, parts: Parts) -> list[Problem]:
        """What in the records must not reach training."""
        del columns, parts
        return []

    def find_names(self, columns: Columns, parts: Parts, known: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Names of the outputs, in order; `known` are those that the source has for its columns."""
        del columns, parts, known
        return ()

    def fit(self, columns: Columns, parts: Parts, names: Sequence[str]) -> Self:
        """This task with what it learns from the training rows, such as class weights."""
        del columns, parts, names
        return self

    @abstractmethod
    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """Examples of all records, in their order.

        Raises:
            DataError: a record that cannot be encoded, or is too long where that is an error.
        """

    # -- on the device --------------------------------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, names: Sequence[str]) -> Outputs:
        """What head it needs."""

    def prepare(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """On the device, before the model: e.g. normalisation of images."""
        return batch

    @abstractmethod
    def objective(self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
        """The training loss of a batch."""

    @abstractmethod
    def assess(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> tuple[Weighted, Predictions]:
        """The evaluation's loss of a batch, and what is known of each example: `loss` f32[B] and arrays [B, ...] of the task's own."""

    @abstractmethod
    def predict(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False
    ) -> Predictions:
        """What the model says of each example, without looking at the answers; arrays [B, ...]."""

    # -- metrics --------------------------------------------------------------------------------------------------------

    @property
    def metric_names(self) -> Mapping[str, Metric | None]:
        """Every number that an evaluation yields (scalars), and the metric that makes it; the loss is always among them."""
        names: dict[str, Metric | None] = {"loss": None}
        for metric in self.metrics:
            names.update(dict.fromkeys(metric.higher_is_better, metric))
        return names

    @property
    def higher_is_better(self) -> bool:
        metric = self.metric_names[self.best]
        return metric is not None and metric.better(self.best) == "max"


def first_number(metric: Any) -> str | None:
    """The first number that a metric gives, by its kind or as an object; None for what is no metric."""
    if isinstance(metric, Metric):
        return next(iter(metric.higher_is_better), None)
    kind = metric.get("kind") if isinstance(metric, Mapping) else metric
    with suppress(PydanticCustomError):  # told where the metric itself is read
        found: Any = OneOf(METRICS).find(str(kind))
        return next(iter(getattr(found, "higher_is_better", ())), None)
    return None
