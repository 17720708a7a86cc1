"""Columns of the records, for slices: whatever stands beside text and label, as numbers or as words of which some are frequent.

Names and values come from the data, so they are made printable here, once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.core.errors import JaxtuneError
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import Records
from jaxtune.data.transforms.pixels import read_pixels

MOST_ROWS = 20_000  # beyond it the records are not read again
MOST_COLUMNS = 12
_RARE = 0.5  # a column of words is of use when at least this share of the rows has a value that occurs 5 times


def record_columns(records: Records | None, rows: np.ndarray, task: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], str]:
    """(columns, why there are none): f64[n] for numbers, object[n] for words, in the order of `rows`.

    Args:
        rows: record numbers i64[n].
        task: the experiment's task section: its own columns are left out; of images brightness, contrast and size are told.
    """
    if records is None:
        return {}, "the records were not at hand"
    if len(rows) > MOST_ROWS:
        return {}, f"there are more than {MOST_ROWS:,} examples"
    own = {task.get(name) for name in ("text", "pair", "image", "label")} | {"split"}
    found: list[dict[str, Any]] = []
    try:
        for row in rows.tolist():
            record = records[row]
            kept = {name: value for name, value in record.items() if name not in own}
            if "image" in task:
                kept |= _looks(read_pixels(record[task["image"]]))
            found.append(kept)
    except (JaxtuneError, OSError, KeyError) as error:
        return {}, printable(error, 200)
    names = list(dict.fromkeys(name for record in found[:1000] for name in record))
    columns = {}
    for name in names:
        values = _column([record.get(name) for record in found])
        if values is not None and len(columns) < MOST_COLUMNS:
            columns[printable(name, 40)] = values
    return columns, ""


def _column(values: list[Any]) -> np.ndarray | None:
    """Numbers where all known values are numbers, words where values repeat, else nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in known):
        numbers = np.array([math.nan if value is None else float(value) for value in values])
        return numbers if len(np.unique(numbers[np.isfinite(numbers)])) > 1 else None
    if not all(isinstance(value, str | bool) for value in known):
        return None
    words = np.array(["none" if value is None else printable(value, 40) for value in values], object)
    counts = Counter(words.tolist())
    frequent = sum(count for count in counts.values() if count >= 5)
    return words if len(counts) > 1 and frequent >= _RARE * len(words) else None


def _looks(pixels: np.ndarray) -> dict[str, float]:
    values = np.asarray(pixels, np.float32)
    facts = {"brightness": float(values.mean()), "contrast": float(values.std())}
    return facts | {"height": float(values.shape[0]), "width": float(values.shape[1])}
