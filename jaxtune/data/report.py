"""What `check` tells about labels and splits before training: counts, copies, contradictions. Numbers only; the commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.data.duplicates import copies


@dataclass(frozen=True)
class LabelReport:
    """How often each label occurs in each split."""

    labels: tuple[str, ...]
    splits: tuple[str, ...]
    counts: np.ndarray  # i64 [labels, splits]

    @property
    def imbalance(self) -> float:
        """Largest over smallest class of the first split (training); infinite when a class is missing there."""
        first = self.counts[:, 0]
        return float(first.max() / first.min()) if first.min() else float("inf")

    def rows(self) -> list[tuple[str, ...]]:
        """A table as text: header, a row per label, the sum."""
        body = [(label, *map(str, counts)) for label, counts in zip(self.labels, self.counts.tolist(), strict=True)]
        return [("label", *self.splits), *body, ("all", *map(str, self.counts.sum(0).tolist()))]

    def as_json(self) -> dict[str, dict[str, int]]:
        """{split: {label: count}}."""
        columns = self.counts.T.tolist()
        return {split: dict(zip(self.labels, column, strict=True)) for split, column in zip(self.splits, columns, strict=True)}


@dataclass(frozen=True)
class Conflict:
    """Rows of equal content whose labels differ."""

    rows: tuple[int, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class SplitReport:
    """What a split did, and what it found among copies."""

    counts: dict[str, int]
    repeated: int  # contents that occur more than once
    copies: int  # rows with such content
    parted: int  # repeated contents that stand in more than one split
    left_out: tuple[int, ...]  # rows in no split: copies of test or validation rows
    conflicts: tuple[Conflict, ...]

    def lines(self) -> list[str]:
        """The findings in words, one a line."""
        lines = [", ".join(f"{name} {count}" for name, count in self.counts.items())]
        if self.repeated:
            where = f"{self.parted} of them in more than one split" if self.parted else "each kept in one split"
            lines.append(f"{self.repeated} contents occur more than once ({self.copies} rows), {where}")
        if self.left_out:
            lines.append(f"{len(self.left_out)} rows left out: copies of test or validation rows")
        for conflict in self.conflicts[:10]:
            rows = ", ".join(map(str, conflict.rows[:10]))
            lines.append(f"rows {rows} have the same content but different labels: {', '.join(conflict.labels)}")
        if len(self.conflicts) > 10:
            lines.append(f"and {len(self.conflicts) - 10} more contents with different labels")
        return lines


def label_report(labels: Sequence[Any], parts: Mapping[str, Sequence[int] | np.ndarray], names: Sequence[str] | None = None) -> LabelReport:
    """`labels` per row: one, a list of them (each counts), or None (not counted). `names` gives the order and classes without rows."""
    order = {name: number for number, name in enumerate(names or ())}
    seen = sorted({label for value in labels for label in label_list(value)} - set(order), key=_natural)
    order |= {name: len(order) + number for number, name in enumerate(seen)}
    counts = np.zeros((len(order), len(parts)), np.int64)
    for column, rows in enumerate(parts.values()):
        for row in rows:
            for label in label_list(labels[row]):
                counts[order[label], column] += 1
    return LabelReport(tuple(order), tuple(parts), counts)


def split_report(parts: Mapping[str, np.ndarray], keys: Sequence[str], labels: Sequence[Any] | None = None) -> SplitReport:
    """`keys` are those given to `Split.assign`; `labels` (per row) are searched for contradictions."""
    home = {int(row): name for name, rows in parts.items() for row in rows}
    repeated = copies(keys)
    parted = sum(len({home[row] for row in rows if row in home}) > 1 for rows in repeated)
    return SplitReport(
        counts={name: len(rows) for name, rows in parts.items()},
        repeated=len(repeated),
        copies=sum(map(len, repeated)),
        parted=parted,
        left_out=tuple(row for row in range(len(keys)) if row not in home),
        conflicts=() if labels is None else _conflicts(repeated, labels),
    )


def _conflicts(repeated: Sequence[Sequence[int]], labels: Sequence[Any]) -> tuple[Conflict, ...]:
    conflicts: list[Conflict] = []
    for rows in repeated:
        different = sorted({", ".join(sorted(label_list(labels[row]))) for row in rows})
        if len(different) > 1:
            conflicts.append(Conflict(tuple(rows), tuple(different)))
    return tuple(conflicts)


def label_list(value: Any) -> list[str]:
    """The labels of one row as text: none for None and "", one, or several."""
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return [str(item) for item in value]
    return [str(value)]


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by value, before words."""
    try:
        number = float(label)
        return (False, number, label) if math.isfinite(number) else (True, 0.0, label)
    except ValueError:
        return (True, 0.0, label)
