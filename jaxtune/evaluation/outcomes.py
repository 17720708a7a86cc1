"""The predictions of one split as arrays: what `predictions.py` wrote, read back for analysis.

Everything after a run works on these arrays, so that a report made today and one made next year from the folder agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.tasks.base import Problem, split_labels

PROBABILITY = "probability "


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Truth and prediction of n examples, C classes.

    Attributes:
        rows: record numbers, i64[n].
        truth, predicted: class numbers i64[n]; multi-label bool[n, C]; regression f64[n].
        probabilities: f64[n, C]; regression: f64[n, 0].
        loss: f64[n], without class weights.
    """

    problem: Problem
    names: tuple[str, ...]
    rows: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    loss: np.ndarray

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


def read_outcomes(path: Path, problem: Problem) -> Outcomes:
    """Reads predictions/<split>.parquet."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()  # read_table would take a folder called "rate=3" for a partition
    names = tuple(name.removeprefix(PROBABILITY) for name in table.column_names if name.startswith(PROBABILITY))
    index = {name: i for i, name in enumerate(names)}

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy().astype(np.float64)

    def encoded(name: str) -> np.ndarray:
        values: list[Any] = table.column(name).to_pylist()
        if problem == "regression":
            return np.array([float(value) for value in values], np.float64)
        if problem == "single_label":
            return np.array([index[str(value)] for value in values], np.int64)
        return one_hot([split_labels(value) for value in values], index)

    probabilities = [column(PROBABILITY + name) for name in names]
    stacked = np.stack(probabilities, 1) if probabilities else np.empty((table.num_rows, 0))
    rows = table.column("row").to_numpy().astype(np.int64)
    return Outcomes(problem, names, rows, encoded("label"), encoded("predicted"), stacked, column("loss"))


def one_hot(listed: list[tuple[str, ...]], index: Mapping[str, int]) -> np.ndarray:
    """bool[n, C] of lists of class names."""
    out = np.zeros((len(listed), len(index)), bool)
    for row, labels in enumerate(listed):
        out[row, [index[label] for label in labels]] = True
    return out
