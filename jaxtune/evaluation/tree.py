"""A shallow regression tree over mixed columns, grown on the errors of a model: its nodes are slices a person can read.

Numbers split at a threshold, words at one value against all others. The criterion is the fall of the squared error, which for errors of 0
and 1 is half the fall of the Gini index; small enough to be its own, so that the core needs no scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_VALUES = 30  # of a column of words; the rarer ones cannot be split off


@dataclass(frozen=True)
class Condition:
    """`column <= value`, `column > value`, `column is value` or `column is not value`."""

    column: str
    relation: str  # "<=", ">", "is" or "is not"
    value: Any

    def holds(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """bool[n]; unknown numbers (NaN) are on the side of ">"."""
        values = columns[self.column]
        if self.relation in ("<=", ">"):
            return (values <= self.value) == (self.relation == "<=")
        return (values == self.value) == (self.relation == "is")


@dataclass(frozen=True)
class Node:
    """A part of the examples: those for which all conditions hold."""

    conditions: tuple[Condition, ...]
    size: int
    mean: float
    spread: float  # standard deviation of the errors
    parts: tuple[Node, ...] = ()


def grow(columns: Mapping[str, np.ndarray], error: np.ndarray, *, depth: int = 3, least: int = 20) -> Node:
    """The tree on f64[n] errors.

    Args:
        columns: f64[n] for numbers (NaN: unknown), object[n] for words.
        least: examples that a node must keep.
    """
    return _grow(columns, error.astype(np.float64), np.arange(len(error)), (), depth, least)


def nodes(tree: Node, least: float = 0.0) -> list[Node]:
    """All nodes below the root; with `least`, those that lie so many standard errors from the node that they are a part of."""
    found = []
    for part in tree.parts:
        if abs(part.mean - tree.mean) * part.size**0.5 >= least * tree.spread:
            found.append(part)
        found += nodes(part, least)
    return found


def _grow(
    columns: Mapping[str, np.ndarray], error: np.ndarray, rows: np.ndarray, conditions: tuple[Condition, ...], depth: int, least: int
) -> Node:
    here = error[rows]
    mean, spread = (float(here.mean()), float(here.std())) if len(rows) else (float("nan"), 0.0)
    found = best_split({name: values[rows] for name, values in columns.items()}, here, least) if depth and len(rows) >= 2 * least else None
    if found is None:
        return Node(conditions, len(rows), mean, spread)
    inside = found.holds({found.column: columns[found.column][rows]})
    opposite = {"<=": ">", "is": "is not"}[found.relation]
    sides = ((found, rows[inside]), (Condition(found.column, opposite, found.value), rows[~inside]))
    parts = (_grow(columns, error, part, (*conditions, condition), depth - 1, least) for condition, part in sides)
    return Node(conditions, len(rows), mean, spread, tuple(parts))


def best_split(columns: Mapping[str, np.ndarray], error: np.ndarray, least: int) -> Condition | None:
    """The condition with the largest fall of the squared error, the first of equals; None when nothing falls."""
    best, gain = None, 1e-9 * max(float(((error - error.mean()) ** 2).sum()), 1e-12)
    for name, values in columns.items():
        for condition, fall in (
            _number_splits(name, values, error, least) if values.dtype != object else _word_splits(name, values, error, least)
        ):
            if fall > gain * (1 + 1e-9):
                best, gain = condition, fall
    return best


def _number_splits(name: str, values: np.ndarray, error: np.ndarray, least: int) -> list[tuple[Condition, float]]:
    """The best threshold, half way between two neighbours."""
    known = np.where(np.isnan(values), np.inf, values)
    order = np.argsort(known, kind="stable")
    ordered, n = known[order], len(values)
    left = np.arange(1, n)
    allowed = (ordered[1:] > ordered[:-1]) & (left >= least) & (n - left >= least)
    if not allowed.any():
        return []
    falls = np.where(allowed, _fall(np.cumsum(error[order])[:-1], left, float(error.sum()), n), -np.inf)
    place = int(falls.argmax())
    low, high = float(ordered[place]), float(ordered[place + 1])
    return [(Condition(name, "<=", low if np.isinf(high) else (low + high) / 2), float(falls[place]))]


def _word_splits(name: str, values: np.ndarray, error: np.ndarray, least: int) -> list[tuple[Condition, float]]:
    """The best single value."""
    words, inverse, counts = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    sums, n = np.bincount(inverse, weights=error), len(values)
    allowed = [i for i in common.tolist() if least <= counts[i] <= n - least]
    if not allowed:
        return []
    falls = _fall(sums[allowed], counts[allowed], float(error.sum()), n)
    place = len(falls) - 1 - int(falls[::-1].argmax())  # of equals (two values alone) the rarer is named
    return [(Condition(name, "is", str(words[allowed[place]])), float(falls[place]))]


def _fall(sums: Any, counts: Any, total: float, n: int) -> np.ndarray:
    """How much the squared error falls when `counts` of `n` examples with these sums are split off."""
    sums, counts = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    return sums**2 / counts + (total - sums) ** 2 / (n - counts) - total**2 / n


def told(conditions: Sequence[Condition]) -> str:
    """A node in words; of several bounds on one number the tightest, in the order in which the columns were first named."""
    said = []
    for column in dict.fromkeys(c.column for c in conditions):
        here = [c for c in conditions if c.column == column]
        low, high = ([c.value for c in here if c.relation == relation] for relation in (">", "<="))
        is_, is_not = ([c.value for c in here if c.relation == relation] for relation in ("is", "is not"))
        if low or high:
            bounds = ([f"above {max(low):.4g}"] if low else []) + ([f"at most {min(high):.4g}"] if high else [])
            said.append(f"{column} {' and '.join(bounds)}")
        elif is_:
            said.append(f"{column} “{is_[0]}”")
        else:
            said.append(f"{column} not {' or '.join(f'“{value}”' for value in is_not)}")
    return ", ".join(said)
