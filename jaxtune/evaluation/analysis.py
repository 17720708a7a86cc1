"""What the predictions of a split say beyond one number: per class, which classes are mixed up, calibration, the hardest examples.

Pure functions of arrays, so that report, comparison and notebooks share them and each can be held against scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxtune.evaluation.outcomes import Outcomes


@dataclass(frozen=True)
class ClassScores:
    """Per class [C]; 0 / 0 counts as 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """`count` examples of class `truth` were called `predicted`; `share` is that part of the class."""

    truth: int
    predicted: int
    count: int
    share: float


@dataclass(frozen=True)
class Reliability:
    """Equal bins of confidence over (0, 1]; means are NaN in empty bins."""

    count: np.ndarray  # i64[bins]
    confidence: np.ndarray  # f64[bins]
    accuracy: np.ndarray  # f64[bins]

    @property
    def error(self) -> float:
        """The expected calibration error; NaN without examples."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        return float(np.sum(np.abs(self.accuracy - self.confidence)[filled] * self.count[filled]) / self.count.sum())

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy: above 0 the model promises too much."""
        filled = self.count > 0
        if not filled.any():
            return float("nan")
        return float(np.sum((self.confidence - self.accuracy)[filled] * self.count[filled]) / self.count.sum())


@dataclass(frozen=True)
class Residuals:
    """Prediction minus truth in a few numbers."""

    bias: float
    mean_absolute: float
    root_mean_square: float
    median_absolute: float
    ninetieth_absolute: float  # nine of ten errors are smaller
    largest_absolute: float


def class_scores(outcomes: Outcomes) -> ClassScores:
    """Precision, recall and F1 of every class; single-label or multi-label."""
    if outcomes.problem == "multi_label":
        hits, predicted, support = ((x > 0).sum(0) for x in (outcomes.truth & outcomes.predicted, outcomes.predicted, outcomes.truth))
    else:
        right = outcomes.truth[outcomes.truth == outcomes.predicted]
        hits, predicted, support = (np.bincount(x, minlength=outcomes.classes) for x in (right, outcomes.predicted, outcomes.truth))
    return ClassScores(ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, predicted + support), support, predicted, hits)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; 0 / 0 is 0."""
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    return np.divide(above, below, out=np.zeros(above.shape), where=below != 0)


def most_confused(outcomes: Outcomes, limit: int) -> list[Confusion]:
    """Pairs of different classes, those with the most examples first; never more memory than examples."""
    wrong = outcomes.truth != outcomes.predicted
    pairs, counts = np.unique(outcomes.truth[wrong] * outcomes.classes + outcomes.predicted[wrong], return_counts=True)
    support = np.bincount(outcomes.truth, minlength=outcomes.classes)
    order = np.argsort(-counts, kind="stable")[:limit]
    found = [(int(pairs[i]) // outcomes.classes, int(pairs[i]) % outcomes.classes, int(counts[i])) for i in order]
    return [Confusion(truth, predicted, count, count / int(support[truth])) for truth, predicted, count in found]


def most_mistaken(outcomes: Outcomes, limit: int) -> np.ndarray:
    """The classes with the most errors as truth or as answer, in class order; all of them when there are no more than `limit`."""
    if outcomes.classes <= limit:
        return np.arange(outcomes.classes)
    wrong = outcomes.truth != outcomes.predicted
    errors = sum(np.bincount(x[wrong], minlength=outcomes.classes) for x in (outcomes.truth, outcomes.predicted))
    return np.sort(np.argsort(-np.asarray(errors), kind="stable")[:limit])


def confusion_matrix(outcomes: Outcomes, chosen: np.ndarray) -> np.ndarray:
    """i64[K, K] among the `chosen` classes: rows are the truth, columns the answers."""
    place = np.full(outcomes.classes, -1)
    place[chosen] = np.arange(len(chosen))
    truth, predicted = place[outcomes.truth], place[outcomes.predicted]
    inside = (truth >= 0) & (predicted >= 0)
    return np.bincount(truth[inside] * len(chosen) + predicted[inside], minlength=len(chosen) ** 2).reshape(len(chosen), len(chosen))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Reliability:
    """How often answers given with some confidence are right; bins are closed above, as in the metric."""
    cell = confidence_bins(confidence, bins)
    count = np.bincount(cell, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(cell, weights=values.astype(np.float64), minlength=bins) / count for values in (confidence, right)]
    return Reliability(count, *means)


def confidence_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of every confidence, i64; in float32 like the metric, so that no example changes its bin."""
    return np.clip(np.ceil(confidence.astype(np.float32) * np.float32(bins)).astype(np.int64) - 1, 0, bins - 1)


def wilson(hits: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Interval of a share (Wilson 1927), which stays inside 0..1 for few examples; count > 0."""
    share = hits / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return middle - half, middle + half


def hardest(outcomes: Outcomes, limit: int) -> np.ndarray:
    """Positions of the examples with the highest loss, the worst first; a loss that is not a number is the worst."""
    return np.argsort(-np.nan_to_num(outcomes.loss, nan=np.inf), kind="stable")[:limit]


def residuals(outcomes: Outcomes) -> Residuals:
    """Errors of predicted numbers; at least one example."""
    error = outcomes.predicted - outcomes.truth
    size = np.abs(error)
    return Residuals(
        bias=float(error.mean()),
        mean_absolute=float(size.mean()),
        root_mean_square=float(np.sqrt(np.mean(error**2))),
        median_absolute=float(np.median(size)),
        ninetieth_absolute=float(np.quantile(size, 0.9)),
        largest_absolute=float(size.max()),
    )
