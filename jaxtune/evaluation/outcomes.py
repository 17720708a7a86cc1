"""The predictions of one split as arrays: what `predictions.py` wrote, read back for analysis.

Everything after a run works on these arrays, so that a report made today and one made next year from the folder agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.evaluation.evaluate import Predictions
from jaxtune.tasks.labelled import Problem, split_labels

PROBABILITY = "probability "


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Truth and prediction of n examples, C classes.

    Attributes:
        rows: record numbers, i64[n].
        truth, predicted: class numbers i64[n]; multi-label bool[n, C]; regression f64[n].
        probabilities: f64[n, C]; regression: f64[n, 0].
        loss: f64[n], without class weights.
        tokens: length before cutting, i64[n]; None where there are none, or in runs of earlier versions.
        keys: content keys (data/duplicates.py), equal for equal content; None in runs of earlier versions.
    """

    problem: Problem
    names: tuple[str, ...]
    rows: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray | None = None
    keys: np.ndarray | None = None

    @classmethod
    def of(
        cls, found: Predictions, names: Sequence[str], problem: Problem, labels: Sequence[Any], tokens: Sequence[int] | None = None
    ) -> Outcomes:
        """Predictions in memory, beside the labels of the same examples."""
        p = found.probabilities.astype(np.float64)
        truth = encoded(labels, problem, {name: i for i, name in enumerate(names)})
        predicted = p[:, 0] if problem == "regression" else p.argmax(1) if problem == "single_label" else p > 0.5
        kept = p[:, :0] if problem == "regression" else p
        lengths = None if tokens is None else np.asarray(tokens, np.int64)
        return cls(problem, tuple(names), found.ids.astype(np.int64), truth, predicted, kept, found.loss.astype(np.float64), lengths)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> int:
        return len(self.names)

    @cached_property
    def shown(self) -> tuple[str, ...]:
        """Class names for people: they come from the data and may hold anything."""
        return tuple(printable(name, 80) for name in self.names)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Of the predicted class, [n]; multi-label: of every label, [n * C]."""
        return self.probabilities.max(1) if self.problem == "single_label" else self.probabilities.reshape(-1)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether what `confidence` speaks of is true, bool of the same shape."""
        return self.truth == self.predicted if self.problem == "single_label" else self.truth.reshape(-1)

    def take(self, chosen: np.ndarray) -> Outcomes:
        """Some of the examples, by mask or position."""
        tokens, keys = (None if values is None else values[chosen] for values in (self.tokens, self.keys))
        rows, truth, predicted = self.rows[chosen], self.truth[chosen], self.predicted[chosen]
        return Outcomes(self.problem, self.names, rows, truth, predicted, self.probabilities[chosen], self.loss[chosen], tokens, keys)


def read_outcomes(path: Path, problem: Problem) -> Outcomes:
    """Reads predictions/<split>.parquet."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()  # read_table would take a folder called "rate=3" for a partition
    names = tuple(name.removeprefix(PROBABILITY) for name in table.column_names if name.startswith(PROBABILITY))
    index = {name: i for i, name in enumerate(names)}

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy().astype(np.float64)

    probabilities = [column(PROBABILITY + name) for name in names]
    stacked = np.stack(probabilities, 1) if probabilities else np.empty((table.num_rows, 0))
    rows = table.column("row").to_numpy().astype(np.int64)
    tokens = table.column("tokens").to_numpy().astype(np.int64) if "tokens" in table.column_names else None
    keys = np.array(table.column("key").to_pylist()) if "key" in table.column_names else None
    truth, predicted = (encoded(table.column(name).to_pylist(), problem, index) for name in ("label", "predicted"))
    return Outcomes(problem, names, rows, truth, predicted, stacked, column("loss"), tokens, keys)


def encoded(values: Sequence[Any], problem: Problem, index: Mapping[str, int]) -> np.ndarray:
    """Labels or answers as class numbers i64[n], bool[n, C] or numbers f64[n]."""
    if problem == "regression":
        return np.array([float(value) for value in values], np.float64)
    if problem == "single_label":
        return np.array([index[str(value)] for value in values], np.int64)
    return one_hot([split_labels(value) for value in values], index)


def one_hot(listed: list[tuple[str, ...]], index: Mapping[str, int]) -> np.ndarray:
    """bool[n, C] of lists of class names."""
    out = np.zeros((len(listed), len(index)), bool)
    for row, labels in enumerate(listed):
        out[row, [index[label] for label in labels]] = True
    return out
