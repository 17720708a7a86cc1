from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from jaxtune.selection.scores import Difference, Scores, around, jackknife, rank_correlation, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 9, 30, 31, 60, 1000])
def test_t_quantile_is_students(degrees: int):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_the_interval_is_nadeau_and_bengios():
    values = np.array([0.9, 0.92, 0.88, 0.95, 0.91, 0.9, 0.93, 0.89, 0.94, 0.92])
    found = around(values, 5)
    half = stats.t.ppf(0.975, 9) * np.sqrt((1 / 10 + 1 / 4) * values.var(ddof=1))
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)


def test_the_interval_covers_and_the_plain_one_does_not():
    """Accuracies of a fixed-skill probe on folds of a fresh sample: the truth lies in the interval in about 95 % of the samples."""
    random = np.random.default_rng(0)
    rows, folds, truth, inside, plain = 100, 5, 0.8, 0, 0
    for _ in range(300):
        right = random.random(rows) < truth
        # two repeats deal the same rows anew, so their folds are far from independent
        values = [part.mean() for _ in range(2) for part in np.array_split(random.permutation(right), folds)]
        found = around(values, folds)
        inside += found.low <= truth <= found.high
        half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
        plain += abs(np.mean(values) - truth) <= half
    assert inside / 300 >= 0.93
    assert plain / 300 < 0.90


def test_differences_are_paired():
    first = Scores((0.90, 0.70, 0.80, 0.60, 0.85), 5)
    better = Scores(tuple(value + 0.02 + 0.001 * i for i, value in enumerate(first.values)), 5)
    found = Difference.of(better, first)
    assert found.mean == pytest.approx(0.022) and not found.within_noise
    assert better.interval.low < first.mean < better.interval.high  # apart they could not be told
    assert Difference.of(first, Scores((0.7, 0.9, 0.6, 0.8, 0.85), 5)).within_noise
    assert Scores((1.0, 1.0, 0.9, 1.0, 1.0), 5).interval.high == 1.0
    same = Difference.of(first, first)
    assert same.mean == 0.0 and same.within_noise


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=40)
    found = jackknife(float(values.mean()), [np.delete(values, i).mean() for i in range(40)])
    half = t_quantile(39) * values.std(ddof=1) / np.sqrt(40)
    assert found.high - values.mean() == pytest.approx(half)


def test_rank_correlation_is_spearmans():
    random = np.random.default_rng(0)
    for _ in range(20):
        first, second = random.integers(0, 6, (2, 9)).astype(float)
        assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))
