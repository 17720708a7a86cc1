"""Tasks whose examples carry a label: one class, several, or a number; the head gives one vector of outputs per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field, model_validator

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.weighted import Weighted
from jaxtune.data.checks import Parts, check_records
from jaxtune.data.checks import Problem as Fault
from jaxtune.layers.dropout import Dropout
from jaxtune.losses import LOSSES
from jaxtune.losses.base import Loss
from jaxtune.tasks.base import Columns, Predictions, Task, by_task, first_number

Problem = Literal["single_label", "multi_label", "regression"]

# Problem -> (loss, metrics, best) where the experiment names none.
USUAL: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "single_label": ("cross_entropy", ("accuracy", "f1"), "accuracy"),
    "multi_label": ("binary_cross_entropy", ("accuracy", "f1"), "f1"),
    "regression": ("mean_squared_error", ("mean_squared_error", "pearson"), "mean_squared_error"),
}
HF_PROBLEM = {"single_label": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression"}


class LabelledTask(Task):
    """Base of tasks with one vector of outputs per example."""

    tells: ClassVar[tuple[str, ...]] = ("logits", "probabilities", "loss")

    label: str = Field(default="label", description="column with the class name, the list of class names, or the number to predict")
    problem: Problem = Field(
        default="single_label", description="single_label: one class each; multi_label: any number; regression: a number"
    )
    labels: tuple[str, ...] | None = Field(
        default=None, description="class names in the wanted order; default: those found in the data, sorted"
    )
    loss: Annotated[Loss, OneOf(LOSSES)] = Field(default_factory=by_task, description="loss by kind; default by problem")

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

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that must hold text."""
        return ()

    @property
    def light(self) -> tuple[str, ...]:
        return (self.label, *self.texts)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.label,)

    def check(self, columns: Columns, parts: Parts) -> list[Fault]:
        regression = self.problem == "regression"
        return check_records(
            columns,
            parts,
            texts=self.texts,
            label=None if regression else self.label,
            targets=(self.label,) if regression else (),
            label_names=self.labels,
        )

    # -- labels ---------------------------------------------------------------------------------------------------------

    def find_names(self, columns: Columns, parts: Parts, known: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        values = columns[self.label]
        return self.find_labels([values[i] for i in parts["train"]], known.get(self.label, ()))

    def fit(self, columns: Columns, parts: Parts, names: Sequence[str]) -> Self:
        counts = self.count(columns[self.label], np.asarray(parts["train"]), names)
        return self if counts is None else self.model_copy(update={"loss": self.loss.fit(counts)})

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

    def objective(self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
        return self.loss(self.predict(model, batch, noise, training=True)["logits"], batch)

    def assess(self, model: nnx.Module, batch: Mapping[str, jax.Array]) -> tuple[Weighted, Predictions]:
        predictions = self.predict(model, batch)
        logits = predictions["logits"]
        return self.loss(logits, batch), {**predictions, "loss": self.loss.each(logits, batch)}

    def probabilities(self, logits: jax.Array) -> jax.Array:
        if self.problem == "single_label":
            return jax.nn.softmax(logits, axis=-1)
        return jax.nn.sigmoid(logits) if self.problem == "multi_label" else logits


def labelled(task: Task, what: str) -> LabelledTask:
    """The task, if its examples carry labels.

    Raises:
        ConfigError: they carry none; `what` needs them.
    """
    if not isinstance(task, LabelledTask):
        raise ConfigError(f"task: {what} needs a task with labels, found {type(task).__name__}; classification and regression have them")
    return task


def split_labels(value: Any) -> tuple[str, ...]:
    """Several classes of one record: a list, or text separated by commas, semicolons or bars."""
    if isinstance(value, str):
        for mark in ("|", ";", ","):
            if mark in value:
                return tuple(part.strip() for part in value.split(mark) if part.strip())
        return (value.strip(),) if value.strip() else ()
    return tuple(str(part) for part in value)
