"""How far a metric of a split may be off by the luck of which examples are in it: percentile bootstrap over the examples.

Every metric is written once as a function of how often each example was drawn, [draws, n] -> [draws]; drawn once each, it must give
the number that the run measured. Where it does not (class weights, a metric of one's own), there is no interval rather than a wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from jaxtune.evaluation.analysis import confidence_bins, ratio
from jaxtune.evaluation.outcomes import Outcomes

DRAWS = 1000
_BLOCK = 4 << 20  # numbers in one block of draws
_BUDGET = 1 << 28  # examples x classes x draws; beyond it there are fewer draws, and the intervals are narrow anyway
_FEWEST = 200
_AGREEMENT = 1e-3  # what float32 sums and the histograms of `auc` may differ from exact sums


@dataclass(frozen=True)
class Interval:
    """From `low` to `high` lie the middle 95 % of the draws."""

    low: float
    high: float


def intervals(
    outcomes: Outcomes, measured: Mapping[str, object], *, bins: int = 15, draws: int = DRAWS, seed: int = 0
) -> dict[str, Interval | list[Interval]]:
    """Intervals of those measured numbers that the predictions reproduce; a list for numbers per class.

    Args:
        measured: the split's numbers by name, as in result.json.
        bins: of the expected calibration error.
        draws: how often n examples are drawn (fewer for very large splits).
    """
    examples = len(outcomes)
    if examples < 2:
        return {}
    once = compute(outcomes, np.ones((1, examples)), measured, bins)
    wanted = [name for name, value in once.items() if _agree(value[0], measured[name])]
    parts = [compute(outcomes, weights, wanted, bins) for weights in draw(examples, min(draws, affordable(outcomes)), seed)]
    found: dict[str, Interval | list[Interval]] = {}
    for name in wanted:
        sample = np.concatenate([part[name] for part in parts])
        if np.isnan(sample).all(0).any():
            continue
        ends = np.nanquantile(sample, [0.025, 0.975], axis=0).T.tolist()
        found[name] = Interval(*ends) if sample.ndim == 1 else [Interval(*pair) for pair in ends]
    return found


def affordable(outcomes: Outcomes) -> int:
    """How many draws a split is worth: DRAWS, fewer where there are very many examples and classes."""
    return min(DRAWS, max(_FEWEST, _BUDGET // (len(outcomes) * max(outcomes.classes, 1))))


def draw(examples: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks f64[b, n]: how often each example was drawn, `draws` rows in all, each with sum n."""
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK // examples)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        chosen = random.integers(examples, size=(rows, examples)) + np.arange(rows)[:, None] * examples
        yield np.bincount(chosen.reshape(-1), minlength=rows * examples).reshape(rows, examples).astype(np.float64)


def compute(outcomes: Outcomes, weights: np.ndarray, wanted: Collection[str], bins: int = 15) -> dict[str, np.ndarray]:
    """Each known metric among `wanted`, [b] or per class [b, C], for examples that count `weights` f64[b, n] times."""
    found: dict[str, np.ndarray] = {}
    for names, function in _FUNCTIONS[outcomes.problem == "regression"]:
        if not names.isdisjoint(wanted):
            found.update(function(outcomes, weights, bins))
    return {name: value for name, value in found.items() if name in wanted}


# -- metrics as functions of weights ----------------------------------------------------------------------------------------


def _loss(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    return {"loss": _mean(weights, outcomes.loss)}


def _accuracy(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    right = outcomes.truth == outcomes.predicted
    if outcomes.problem == "single_label":
        return {"accuracy": _mean(weights, right)}
    return {"accuracy": _mean(weights, right.all(1)), "label_accuracy": _mean(weights, right.mean(1))}


def _f1(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    hits, predicted, support = _counts(outcomes, weights)
    each = ratio(2 * hits, predicted + support)
    present = (predicted + support > 0) | (outcomes.problem == "multi_label")
    return {
        "f1": ratio((each * present).sum(1), present.sum(1)),
        "f1_micro": ratio(2 * hits.sum(1), (predicted + support).sum(1)),
        "f1_weighted": ratio((each * support).sum(1), support.sum(1)),
        "f1_per_class": each,
    }


def _matthews(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    hits, predicted, support = _counts(outcomes, weights)
    total = weights.sum(1, keepdims=True)
    if outcomes.problem == "multi_label":
        below = np.sqrt(predicted * (total - predicted) * support * (total - support))
        return {"matthews": ratio(hits * total - predicted * support, below).mean(1)}
    total = total[:, 0]
    below = np.sqrt((total**2 - (predicted**2).sum(1)) * (total**2 - (support**2).sum(1)))
    return {"matthews": ratio(hits.sum(1) * total - (predicted * support).sum(1), below)}


def _calibration(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    each = len(outcomes.confidence) // len(outcomes)  # answers per example
    cell = confidence_bins(outcomes.confidence, bins).reshape(-1, each)
    gap = (outcomes.right - outcomes.confidence).reshape(-1, each)
    sums = sum(group_sums(weights * gap[:, i], cell[:, i], bins) for i in range(each))
    return {"expected_calibration_error": np.abs(np.asarray(sums)).sum(1) / (weights.sum(1) * each)}


def _auc(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    areas = []
    for number in range(outcomes.classes):
        positive = outcomes.truth == number if outcomes.truth.ndim == 1 else outcomes.truth[:, number]
        _, tied = np.unique(outcomes.probabilities[:, number], return_inverse=True)
        groups = int(tied.max()) + 1
        won, lost = (group_sums(weights * mask, tied, groups) for mask in (positive, ~positive))
        below = np.cumsum(lost, 1) - lost / 2
        with np.errstate(invalid="ignore"):
            areas.append((won * below).sum(1) / (won.sum(1) * lost.sum(1)))
    stacked = np.stack(areas, 1)
    return {"auc": ratio(np.nansum(stacked, 1), np.isfinite(stacked).sum(1))}


def _regression(outcomes: Outcomes, weights: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    error = outcomes.predicted - outcomes.truth
    x, y = outcomes.predicted - outcomes.predicted.mean(), outcomes.truth - outcomes.truth.mean()
    mean_x, mean_y = _mean(weights, x), _mean(weights, y)
    x_spread, y_spread = _mean(weights, x * x) - mean_x**2, _mean(weights, y * y) - mean_y**2
    squared = _mean(weights, error**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mean_squared_error": squared,
            "mean_absolute_error": _mean(weights, np.abs(error)),
            "pearson": (_mean(weights, x * y) - mean_x * mean_y) / np.sqrt(x_spread * y_spread),
            "r2": 1 - squared / y_spread,
        }


_Function = Callable[[Outcomes, np.ndarray, int], dict[str, np.ndarray]]
_BASIC: tuple[frozenset[str], _Function] = (frozenset({"loss"}), _loss)
_FUNCTIONS: Mapping[bool, tuple[tuple[frozenset[str], _Function], ...]] = {
    False: (
        _BASIC,
        (frozenset({"accuracy", "label_accuracy"}), _accuracy),
        (frozenset({"f1", "f1_micro", "f1_weighted", "f1_per_class"}), _f1),
        (frozenset({"matthews"}), _matthews),
        (frozenset({"expected_calibration_error"}), _calibration),
        (frozenset({"auc"}), _auc),
    ),
    True: (_BASIC, (frozenset({"mean_squared_error", "mean_absolute_error", "pearson", "r2"}), _regression)),
}


# -- sums -------------------------------------------------------------------------------------------------------------------


def _mean(weights: np.ndarray, each: np.ndarray) -> np.ndarray:
    return weights @ each.astype(np.float64) / weights.sum(1)


def _counts(outcomes: Outcomes, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, answers and examples per class, f64[b, C] each."""
    truth, predicted = outcomes.truth, outcomes.predicted
    if outcomes.problem == "multi_label":
        hits, answers, support = (weights @ x.astype(np.float64) for x in (truth & predicted, predicted, truth))
        return hits, answers, support
    right = truth == predicted
    return (
        group_sums(weights[:, right], truth[right], outcomes.classes),
        group_sums(weights, predicted, outcomes.classes),
        group_sums(weights, truth, outcomes.classes),
    )


def group_sums(weights: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """f64[b, count]: for every row of `weights` [b, m], its sum over the members of each group; the time does not grow with `count`."""
    out = np.zeros((len(weights), count))
    if len(groups):
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        out[:, present] = np.add.reduceat(weights[:, order], starts, axis=1)
    return out


def _agree(exact: np.ndarray, measured: object) -> bool:
    """Whether the predictions give the number that was measured."""
    if not isinstance(measured, int | float | list):
        return False
    found = np.asarray(measured, np.float64)
    return found.shape == exact.shape and bool(np.isfinite(found).all()) and np.allclose(exact, found, rtol=_AGREEMENT, atol=_AGREEMENT)
