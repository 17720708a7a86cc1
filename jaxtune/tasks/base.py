"""What a task is: how records become examples, what the head must put out, the loss, the predictions, the metrics.

A task knows neither a model family nor the loop; it speaks in the keys of a batch and in logits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jaxtune.core.component import Component, OneOf, nearest
from jaxtune.core.errors import DataError
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Records
from jaxtune.layers.dropout import Dropout
from jaxtune.losses import LOSSES
from jaxtune.losses.base import Loss
from jaxtune.metrics import METRICS
from jaxtune.metrics.base import Metric
from jaxtune.models.family import Domain
from jaxtune.models.load import Base

Predictions = dict[str, jax.Array]
Problem = Literal["single_label", "multi_label", "regression"]

# Problem -> (loss, metrics, best) where the experiment names none.
USUAL: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "single_label": ("cross_entropy", ("accuracy", "f1"), "accuracy"),
    "multi_label": ("binary_cross_entropy", ("accuracy", "f1"), "f1"),
    "regression": ("mean_squared_error", ("mean_squared_error", "pearson"), "mean_squared_error"),
}
HF_PROBLEM = {"single_label": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression"}


def by_problem() -> Any:
    """Stands where `Task.usual` fills in the default, so that the setting need not be given."""


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
    """Base of all tasks with one vector of outputs per example."""

    domain: ClassVar[Domain]

    label: str = Field(default="label", description="column with the class name, the list of class names, or the number to predict")
    problem: Problem = Field(
        default="single_label", description="single_label: one class each; multi_label: any number; regression: a number"
    )
    labels: tuple[str, ...] | None = Field(
        default=None, description="class names in the wanted order; default: those found in the data, sorted"
    )
    loss: Annotated[Loss, OneOf(LOSSES)] = Field(default_factory=by_problem, description="loss by kind; default by problem")
    metrics: tuple[Annotated[Metric, OneOf(METRICS)], ...] = Field(
        default_factory=by_problem, description="metrics by kind; default by problem"
    )
    best: str = Field(default_factory=by_problem, description="the metric that decides which checkpoint is best; default by problem")

    @model_validator(mode="before")
    @classmethod
    def usual(cls, values: Any) -> Any:
        """Fills in loss, metrics and best by problem."""
        if not isinstance(values, Mapping):
            return values
        loss, metrics, best = USUAL.get(str(values.get("problem", "single_label")), USUAL["single_label"])
        filled = {"loss": loss, "metrics": metrics, **values}
        numbers = [number for metric in filled["metrics"] or () if (number := first_number(metric))]
        return {"best": best if best in numbers else next(iter(numbers), "loss"), **filled}

    @model_validator(mode="after")
    def best_is_measured(self) -> Task:
        names = self.metric_names
        if self.best not in names:
            raise ValueError(f'best: "{self.best}" is not measured{nearest(self.best, list(names))} (measured: {", ".join(sorted(names))})')
        return self

    # -- what a task states ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def content(self) -> tuple[str, ...]:
        """The record columns that make an example what it is: two rows with equal content are copies."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every record column that it reads."""
        return (*self.content, self.label)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that must hold text."""
        return ()

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

    @abstractmethod
    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """Examples of all records, in their order.

        Raises:
            DataError: a record that cannot be encoded, or is too long where that is an error.
        """

    @abstractmethod
    def prepare(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """On the device, before the model: e.g. normalisation of images."""

    # -- labels ---------------------------------------------------------------------------------------------------------

    def find_labels(self, values: Sequence[Any], known: Sequence[str] = ()) -> tuple[str, ...]:
        """The class names: those given, those the source knows, or those found in the training rows, sorted."""
        if self.problem == "regression":
            return ()
        if self.labels is not None:
            return self.labels
        found = {str(v) for v in values} if self.problem == "single_label" else {str(v) for vs in values for v in split_labels(vs)}
        known = tuple(name for name in known if name in found)
        if known and set(known) == found:
            return known
        return tuple(sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)))

    def encode_labels(self, values: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
        """The batch columns `label` i32[n], or `target` f32[n, C].

        Raises:
            DataError: a value that is no known class or no number; with the rows.
        """
        index = {name: i for i, name in enumerate(names)}
        wrong: list[str] = []
        if self.problem == "single_label":
            column = np.array([index.get(str(v), -1) for v in values], np.int32)
            wrong = [f"row {i}: {values[i]!r}" for i in np.flatnonzero(column < 0)[:10]]
            out = {"label": column}
        elif self.problem == "multi_label":
            target = np.zeros((len(values), len(names)), np.float32)
            for row, listed in enumerate(values):
                for name in split_labels(listed):
                    if name in index:
                        target[row, index[name]] = 1.0
                    else:
                        wrong.append(f"row {row}: {name!r}")
            out = {"target": target}
        else:
            target = np.full((len(values), 1), np.nan, np.float32)
            for row, value in enumerate(values):
                with suppress(TypeError, ValueError):
                    target[row, 0] = float(value)
                if not np.isfinite(target[row, 0]):
                    wrong.append(f"row {row}: {value!r}")
            out = {"target": target}
        if wrong:
            expected = "a finite number" if self.problem == "regression" else f"one of {', '.join(names[:12])}"
            raise DataError(
                f'column "{self.label}": {len(wrong)} value(s) that do not fit, e.g. {"; ".join(wrong[:10])}; expected {expected}'
            )
        return out

    def count(self, values: Sequence[Any], rows: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
        """How often each class occurs in these rows, i64[C]; None for regression."""
        if self.problem == "regression":
            return None
        index = {name: i for i, name in enumerate(names)}
        found = [
            index[label] for row in rows for label in ((str(values[row]),) if self.problem == "single_label" else split_labels(values[row]))
        ]
        return np.bincount(found, minlength=len(names))

    def outputs(self, names: Sequence[str]) -> int:
        """Width of the head."""
        return 1 if self.problem == "regression" else len(names)

    # -- on the device --------------------------------------------------------------------------------------------------

    def predict(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False
    ) -> Predictions:
        """logits and probabilities, f32[B, C]; for regression the logits are the values."""
        features = model(self.prepare(batch), noise, training)  # type: ignore[operator]
        logits = model.head(features, noise).astype(jnp.float32)  # type: ignore[attr-defined]
        return {"logits": logits, "probabilities": self.probabilities(logits)}

    def probabilities(self, logits: jax.Array) -> jax.Array:
        if self.problem == "single_label":
            return jax.nn.softmax(logits, axis=-1)
        return jax.nn.sigmoid(logits) if self.problem == "multi_label" else logits

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


def split_labels(value: Any) -> tuple[str, ...]:
    """Several classes of one record: a list, or text separated by commas, semicolons or bars."""
    if isinstance(value, str):
        for mark in ("|", ";", ","):
            if mark in value:
                return tuple(part.strip() for part in value.split(mark) if part.strip())
        return (value.strip(),) if value.strip() else ()
    return tuple(str(part) for part in value)
