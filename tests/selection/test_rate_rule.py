"""The rule that reads a rate off a range test, against curves whose steepest and lowest places are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxtune.selection import rate_rule
from jaxtune.selection.rate_rule import local_lines, read, smooth

STEEPEST, BREAKS = 4e-4, 2e-2


def true_loss(rates: np.ndarray, fall: float = 1.4, steepest: float = STEEPEST, breaks: float = BREAKS) -> np.ndarray:
    """A logistic fall over log rate, steepest at `steepest`, and an explosion beyond `breaks`."""
    x = np.log10(rates / steepest)
    return 1.6 - fall / (1 + np.exp(-x / 0.25)) + (rates / breaks) ** 3


def test_of(
    seeds: int = 3, steps: int = 60, low: float = 1e-6, high: float = 1e-1, noise: float = 0.1, first: int = 0, **curve: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rates, losses, broke) as a range test gives them."""
    rates = np.geomspace(low, high, steps)
    losses = np.empty((seeds, steps))
    broke = np.zeros(seeds, bool)
    for row in range(seeds):
        losses[row] = true_loss(rates, **curve) + noise * np.random.default_rng(first + row).standard_normal(steps)
        far = np.flatnonzero(losses[row] > 6.0)
        if len(far):
            losses[row, far[0] :] = math.nan
            broke[row] = True
    return rates, losses, broke


test_of.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [40, 60, 150])
@pytest.mark.parametrize("first", [0, 10, 20])
def test_the_steepest_and_the_lowest_place_are_found(steps: int, first: int) -> None:
    found = read(*test_of(steps=steps, first=first))
    fine = np.geomspace(1e-6, 1e-1, 5001)
    lowest = fine[np.argmin(true_loss(fine))]
    assert found.clear, found.reasons
    assert found.steepest is not None and 1 / 1.9 < found.steepest / STEEPEST < 1.9
    assert found.largest_stable is not None and 1 / 2 < found.largest_stable / lowest < 2
    assert found.rate == pytest.approx(math.sqrt(found.steepest * found.largest_stable / 10), rel=0.05)
    assert found.fall == pytest.approx(1.6 - true_loss(fine).min(), abs=0.15)
    assert len(found.seeds) == 3 and all(rate is not None for rate in found.seeds)


def test_local_lines_keep_straight_lines_at_the_ends_too() -> None:
    x = np.linspace(-6, -1, 30)
    values, slopes = local_lines(x, 0.4)
    np.testing.assert_allclose(values @ (3 - 2 * x), 3 - 2 * x, rtol=1e-9)
    np.testing.assert_allclose(slopes @ (3 - 2 * x), -2, rtol=1e-9)


def test_local_lines_are_weighted_least_squares() -> None:
    random = np.random.default_rng(0)
    x, y = np.linspace(0, 2, 20), random.random(20)
    weight = np.exp(-0.5 * ((x - x[4]) / 0.3) ** 2)
    slope, value = np.polyfit(x - x[4], y, 1, w=np.sqrt(weight))
    values, slopes = local_lines(x, 0.3)
    assert (values @ y)[4] == pytest.approx(value) and (slopes @ y)[4] == pytest.approx(slope)


def test_the_standard_error_is_that_of_many_repetitions() -> None:
    """The stated error of the mean curve against the scatter of 300 tests on a loss that does nothing but noise."""
    rates = np.geomspace(1e-6, 1e-2, 40)
    random = np.random.default_rng(0)
    found = [smooth(rates, 1.0 + 0.1 * random.standard_normal((2, 40))) for _ in range(300)]
    scatter = np.std([one.mean for one in found], axis=0)[5:-5].mean()
    stated = np.mean([one.error for one in found], axis=0)[5:-5].mean()
    assert stated == pytest.approx(scatter, rel=0.15)
    assert np.mean([one.noise for one in found]) == pytest.approx(0.1, rel=0.1)


def test_noise_alone_is_no_answer() -> None:
    """A loss that never falls must not be read as one that does, whatever the noise: of 200 tests at most 2."""
    found = [read(*test_of(first=10 * n, fall=0.0, breaks=1e3)) for n in range(200)]
    wrong = sum(one.rate is not None for one in found)
    assert wrong <= 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fall": 0.0}, "never falls by more than noise"),
        ({"fall": 0.0, "breaks": 1e3}, "never falls by more than noise"),
        ({"fall": 0.02, "noise": 0.3}, "never falls by more than noise"),
        ({"breaks": 1e3}, "the loss had not begun to rise: widen the range with --high"),
        ({"steepest": 1.5e-6}, "at the low end of the range: widen it with --low"),
        ({"low": 3e-4}, "at the low end of the range: widen it with --low"),
        ({"low": 1e-1, "high": 10.0}, "broke within"),
    ],
)
def test_what_cannot_be_read_is_said(settings: dict[str, float], told: str) -> None:
    found = read(*test_of(**settings))  # type: ignore[arg-type]
    assert not found.clear and any(told in reason for reason in found.reasons), found.reasons


def test_seeds_that_disagree_give_no_clear_answer_but_a_place_to_race() -> None:
    rates = np.geomspace(1e-6, 1e-1, 60)
    apart = np.stack([true_loss(rates, steepest=rate, breaks=30 * rate) for rate in (3e-5, 1e-3)])
    apart += 0.05 * np.random.default_rng(0).standard_normal(apart.shape)
    apart[apart > 6] = math.nan
    found = read(rates, apart, np.ones(2, bool))
    first, second = found.seeds
    assert first is not None and second is not None and second > 3 * first
    assert not found.clear and found.rate is not None and "the seeds disagree by more than 3 times" in found.reasons[-1]


def test_one_seed_is_enough_and_says_nothing_of_others() -> None:
    found = read(*test_of(seeds=1))
    assert found.clear and found.seeds == (found.rate,)


def test_a_broken_batch_at_the_end_does_not_pull_the_curve() -> None:
    rates, losses, broke = test_of(noise=0.02)
    calm = read(rates, losses, broke)
    last = int(np.isfinite(losses).all(axis=0).sum()) - 1
    losses[0, last] = 500.0
    wild = read(rates, losses, broke)
    assert calm.rate is not None and wild.rate is not None
    assert 1 / 1.5 < wild.rate / calm.rate < 1.5


def test_the_rule_scales_with_the_rates() -> None:
    """Another unit of the rate, the same answer in it."""
    rates, losses, broke = test_of()
    here, there = read(rates, losses, broke), read(rates / 100, losses, broke)
    assert here.rate is not None and there.rate == pytest.approx(here.rate / 100, rel=0.06)


def test_rates_have_two_digits() -> None:
    assert rate_rule.two_digits(3.2468e-5) == 3.2e-5
