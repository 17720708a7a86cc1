"""How the model does on parts of a split: by class, by length, by any column of the records, and parts that a shallow tree found.

Many parts are looked at, so some differ by luck. Two guards: the tree's parts are found on validation and measured on test, where they
were not chosen; and a part stands out only if its interval, widened for the number of parts that were looked at (Bonferroni), leaves 0 out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from jaxtune.evaluation.analysis import wilson
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.tree import Condition, grow, nodes, told

LENGTH, CLASS = "length in tokens", "class"
MOST_VALUES = 10  # of one column
MOST_FOLLOWED = 30  # classes, over the run
MOST_FOUND = 6
DISTINCT = 2.0  # standard errors between a part that the tree found and the one around it
Columns = Mapping[str, np.ndarray]  # f64[n] for numbers (NaN: unknown), object[n] of text for words


@dataclass(frozen=True)
class Slice:
    """A part of a split. `score` is the share of right answers, or the mean absolute error for numbers; `gap` is it minus the whole's."""

    by: str
    name: str
    size: int
    score: float
    low: float
    high: float
    gap: float
    gap_low: float
    gap_high: float
    stands_out: bool


@dataclass(frozen=True)
class Part:
    """A part before it is measured."""

    by: str
    name: str
    mask: np.ndarray


def scores(outcomes: Outcomes) -> np.ndarray:
    """f64[n]: 1 for a right answer (all labels right), 0 for a wrong one; for numbers the absolute error."""
    if outcomes.problem == "regression":
        return np.abs(outcomes.predicted - outcomes.truth)
    right = outcomes.truth == outcomes.predicted
    return (right if right.ndim == 1 else right.all(1)).astype(np.float64)


def own_columns(outcomes: Outcomes) -> dict[str, np.ndarray]:
    """What the predictions themselves tell: the true class, the length."""
    found: dict[str, np.ndarray] = {}
    if outcomes.problem == "single_label":
        found[CLASS] = np.array(outcomes.shown, object)[outcomes.truth]
    if outcomes.tokens is not None and len(np.unique(outcomes.tokens)) > 1:
        found[LENGTH] = outcomes.tokens.astype(np.float64)
    return found


# -- parts that are known beforehand ----------------------------------------------------------------------------------------


def usual_parts(columns: Columns, edges: Mapping[str, Sequence[float]], *, least: int = 1, most: int = MOST_VALUES) -> list[Part]:
    """Quarters of every column of numbers at the given edges, the frequent values of every column of words."""
    found = []
    for name, values in columns.items():
        if values.dtype == object:
            words, counts = np.unique(values.astype(str), return_counts=True)
            kept = words[np.argsort(-counts, kind="stable")][:most].tolist()
            found += [Part(name, word, values == word) for word in sorted(kept)]
        else:
            found += _quarters(name, values, edges.get(name, ()))
    return [part for part in found if part.mask.sum() >= least]


def quartiles(columns: Columns) -> dict[str, list[float]]:
    """The edges of `usual_parts`: up to three per column of numbers, rounded down to three digits when they are large."""
    found = {}
    for name, values in columns.items():
        known = values[np.isfinite(values)] if values.dtype != object else np.empty(0)
        if len(known):
            edges = sorted({_rounded(float(edge)) for edge in np.quantile(known, [0.25, 0.5, 0.75], method="lower")})
            found[name] = [edge for edge in edges if known.min() <= edge < known.max()]
    return found


def _rounded(edge: float) -> float:
    return float(int(edge)) if abs(edge) >= 10 else float(f"{edge:.2g}")


def _quarters(name: str, values: np.ndarray, edges: Sequence[float]) -> list[Part]:
    if not edges:
        return []
    known = np.isfinite(values)
    cell = np.searchsorted(np.asarray(edges), values, side="left")  # edge <= belongs to the left
    names = [
        f"at most {edges[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(edges)),
        f"above {edges[-1]:g}",
    ]
    return [Part(name, said, known & (cell == i)) for i, said in enumerate(names)]


# -- parts that a tree finds ------------------------------------------------------------------------------------------------


def found_parts(learn: Columns, learn_scores: np.ndarray, columns: Columns) -> list[Part]:
    """Parts in which the scores differ from the whole, found in `learn` and marked in `columns`; simple ones first.

    Args:
        learn, learn_scores: of the split in which they are looked for.
        columns: of the split in which they will be measured; needs the same names.
    """
    shared = {name: values for name, values in learn.items() if name in columns and columns[name].dtype == values.dtype}
    least = max(10, len(learn_scores) // 20)
    tree = grow(shared, learn_scores, depth=3, least=least)
    ranked = sorted(nodes(tree, DISTINCT), key=lambda node: -abs(node.mean - tree.mean) * node.size**0.5)
    parts: list[Part] = []
    for node in ranked:
        mask = _marked(node.conditions, columns)
        if mask.sum() >= 5 and not any(_alike(mask, part.mask) for part in parts):
            parts.append(Part("found", told(node.conditions), mask))
    return parts[:MOST_FOUND]


def _marked(conditions: Sequence[Condition], columns: Columns) -> np.ndarray:
    mask = np.ones(len(next(iter(columns.values()))), bool)
    for condition in conditions:
        mask &= condition.holds(columns)
    return mask


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """The same part, or its complement, which says the same."""
    return bool((a == b).mean() > 0.97 or (a != b).mean() > 0.97)


# -- measuring --------------------------------------------------------------------------------------------------------------


def measure(parts: Sequence[Part], values: np.ndarray, *, shares: bool) -> list[Slice]:
    """Every part's score and its distance from the whole, with 95 % intervals.

    Args:
        values: the scores f64[n].
        shares: whether they are 0 or 1.
    """
    return [one for part in parts if (one := _measured(part, values, shares, len(parts))) is not None]


def _measured(part: Part, values: np.ndarray, shares: bool, looks: int) -> Slice | None:
    inside, outside = values[part.mask], values[~part.mask]
    if not len(inside):
        return None
    score = float(inside.mean())
    low, high = _interval(inside, shares, 1.96)
    if not len(outside):
        return Slice(part.by, part.name, len(inside), score, low, high, 0.0, 0.0, 0.0, False)
    rest = len(outside) / len(values)  # the part minus the whole is this share of the part minus the others
    gap_low, gap_high = (rest * end for end in _difference(inside, outside, shares, 1.96))
    wide_low, wide_high = _difference(inside, outside, shares, NormalDist().inv_cdf(1 - 0.025 / max(looks, 1)))
    stands_out = wide_low > 0 or wide_high < 0
    return Slice(part.by, part.name, len(inside), score, low, high, score - float(values.mean()), gap_low, gap_high, stands_out)


def _interval(values: np.ndarray, shares: bool, z: float) -> tuple[float, float]:
    if shares:
        low, high = wilson(np.array([values.sum()]), np.array([len(values)]), z)
        return float(low[0]), float(high[0])
    half = z * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else float("inf")
    return float(values.mean()) - half, float(values.mean()) + half


def _difference(a: np.ndarray, b: np.ndarray, shares: bool, z: float) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) of independent examples, from the two intervals (Newcombe 1998, method 10)."""
    (a_low, a_high), (b_low, b_high) = _interval(a, shares, z), _interval(b, shares, z)
    mean_a, mean_b = float(a.mean()), float(b.mean())
    difference = mean_a - mean_b
    return difference - float(np.hypot(mean_a - a_low, b_high - mean_b)), difference + float(np.hypot(a_high - mean_a, mean_b - b_low))


# -- over the run -----------------------------------------------------------------------------------------------------------


def table(outcomes: Outcomes) -> list[dict[str, Any]]:
    """A small table for evaluations.jsonl: one line a class and a quarter of the lengths, with size, score and mean loss."""
    columns, values = own_columns(outcomes), scores(outcomes)
    parts = usual_parts(columns, quartiles(columns), most=MOST_FOLLOWED)
    return [
        {"by": part.by, "name": part.name, "size": int(part.mask.sum()), "score": float(values[part.mask].mean()),
         "loss": float(outcomes.loss[part.mask].mean())}
        for part in parts
    ]  # fmt: skip
