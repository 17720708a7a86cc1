"""Scores over folds, and what they can and cannot tell apart.

Folds share most of their training rows, so the plain standard error of their scores is far too small. The variance is corrected by the
ratio of held-out to training rows (Nadeau and Bengio 2003, "Inference for the Generalization Error").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtune.evaluation.bootstrap import Interval


@dataclass(frozen=True)
class Scores:
    """One number per repeat and fold; `folds` is the number of folds in a repeat."""

    values: tuple[float, ...]
    folds: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def interval(self) -> Interval:
        """Where the mean may lie, 95 %; no measure is above 1."""
        found = around(self.values, self.folds)
        return Interval(found.low, min(found.high, 1.0))


@dataclass(frozen=True)
class Difference:
    """One candidate's scores minus another's on the same folds: the mean and its 95 % interval."""

    mean: float
    interval: Interval

    @classmethod
    def of(cls, first: Scores, second: Scores) -> Difference:
        assert first.folds == second.folds and len(first.values) == len(second.values), "scores of other folds"
        values = np.subtract(first.values, second.values)
        return cls(float(values.mean()), around(values, first.folds))

    @property
    def within_noise(self) -> bool:
        """Whether no difference at all lies in the interval."""
        return self.interval.low <= 0.0 <= self.interval.high


def around(values: Sequence[float] | np.ndarray, folds: int) -> Interval:
    """mean -+ t * sqrt((1 / count + held-out rows / training rows) * variance)."""
    array = np.asarray(values, np.float64)
    held_to_training = 1.0 / (folds - 1)
    half = t_quantile(len(array) - 1) * math.sqrt((1.0 / len(array) + held_to_training) * float(array.var(ddof=1)))
    return Interval(float(array.mean()) - half, float(array.mean()) + half)


def jackknife(whole: float, without: Sequence[float]) -> Interval:
    """95 % interval of a number from its values with each of k equal parts left out (delete-a-group jackknife)."""
    array = np.asarray(without, np.float64)
    count = len(array)
    half = t_quantile(count - 1) * math.sqrt((count - 1) / count * float(((array - array.mean()) ** 2).sum()))
    return Interval(whole - half, whole + half)


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, ties sharing their mean rank; NaN where one side is constant."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    spread = float(ranks[0].std() * ranks[1].std())
    if not spread:
        return math.nan
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / spread)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]
