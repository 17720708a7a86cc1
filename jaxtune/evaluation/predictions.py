"""Per-example predictions as a parquet file: one row an example, joined with its record by `row`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.evaluation.evaluate import Predictions
from jaxtune.tasks.labelled import Problem

RENAMED = {"tokens": "target_tokens"}  # `tokens` are all of an example, before cutting


def predictions_table(predictions: Predictions, names: Sequence[str], problem: Problem | None) -> dict[str, object]:
    """Columns: row, and for a task with labels predicted, [confidence,] and one probability per class; else what the task knows of a row."""
    columns: dict[str, object] = {"row": predictions.ids}
    columns |= {RENAMED.get(name, name): list(values) if values.ndim > 1 else values for name, values in predictions.more.items()}
    if problem is None:
        return columns
    probabilities = predictions.probabilities
    if problem == "single_label":
        best = probabilities.argmax(axis=1)
        columns["predicted"] = [names[int(i)] for i in best]
        columns["confidence"] = probabilities[np.arange(len(best)), best]
    elif problem == "multi_label":
        columns["predicted"] = [[names[int(i)] for i in np.flatnonzero(row > 0.5)] for row in probabilities]
    else:
        columns["predicted"] = probabilities[:, 0]
    if problem != "regression":
        columns.update({f"probability {name}": probabilities[:, i] for i, name in enumerate(names)})
    return columns


def write_predictions(
    path: Path,
    predictions: Predictions,
    names: Sequence[str],
    problem: Problem | None,
    truth: Sequence[object] | None,
    more: Mapping[str, Sequence[object]] | None = None,
) -> None:
    """Writes the table with the loss of every example, and its true label; whole or not at all.

    Args:
        truth: the label column of the whole data set, indexed by row number; None for a task without labels.
        more: further columns of the whole data set: `tokens` (length before cutting), `key` (content key).
    """
    columns = predictions_table(predictions, names, problem)
    if truth is not None:
        columns["label"] = [truth[i] for i in predictions.ids]
    columns["loss"] = predictions.loss
    columns |= {name: [values[i] for i in predictions.ids] for name, values in (more or {}).items()}
    write_table(path, columns)


def read_rows(path: Path) -> list[Mapping[str, Any]]:
    """The rows of such a file, in order; none where it is not there."""
    if not path.is_file():
        return []
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read().to_pylist()


def write_table(path: Path, columns: Mapping[str, object]) -> None:
    """Writes a parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.table(dict(columns)), partial)
    partial.replace(path)
