"""The race and the advice: intervals against scipy, schedules pressed together, and overrides that mean what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from jaxtune.config.yaml12 import parse_value
from jaxtune.selection.lr_advice import advise, override_words
from jaxtune.selection.race import Race, further, highest_rate, holds, judge, pressed, rates_around
from jaxtune.selection.rate_rule import Reading
from jaxtune.selection.short_trainings import Step
from jaxtune.training.schedules.any_optax import OptaxSchedule
from jaxtune.training.schedules.base import Schedule
from jaxtune.training.schedules.inverse_sqrt import InverseSqrt
from jaxtune.training.schedules.one_cycle import OneCycle
from jaxtune.training.schedules.piecewise import Piecewise
from jaxtune.training.schedules.shapes import Constant, Cosine, Exponential, Linear, Polynomial
from jaxtune.training.schedules.warmup_stable_decay import WarmupStableDecay

SCHEDULES: list[Schedule] = [
    Constant(rate=1e-3),
    Linear(peak=1e-3, warmup=0.1),
    Cosine(peak=1e-3, end=1e-4, warmup=7),
    Polynomial(peak=1e-3, power=3.0),
    Exponential(peak=1e-3, end=1e-5),
    InverseSqrt(peak=1e-3, warmup=10),
    OneCycle(peak=1e-3),
    WarmupStableDecay(peak=1e-3, end=1e-5),
    Piecewise(rates=(1e-3, 5e-4, 0.0), boundaries=(0.5, 0.9)),
]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_centre_races_too(count: int) -> None:
    rates = rates_around(3e-4, count)
    assert len(rates) == count and 3e-4 in rates and list(rates) == sorted(rates)
    np.testing.assert_allclose(np.diff(np.log10(rates)), 0.5, atol=0.02)


@pytest.mark.parametrize(
    ("losses", "beyond"),
    [
        ([0.9, 0.5, 0.7], None),
        ([0.4, 0.5, 0.7], 3.2e-5),
        ([0.9, 0.5, 0.3], 3.2e-2),
        ([0.4, math.inf, math.inf], 3.2e-5),
        ([math.inf] * 3, None),
        ([0.4], None),
    ],
)
def test_a_best_at_the_end_calls_for_a_rate_beyond(losses: list[float], beyond: float | None) -> None:
    assert further({10.0 ** (number - 4): [loss, loss] for number, loss in enumerate(losses)}) == beyond


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_overrides_make_the_rate_the_highest_and_keep_the_shape(schedule: Schedule) -> None:
    words = override_words(schedule, 3.2e-5, 1, 100)
    found: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        assert name.startswith("phases.1.optimizer.schedule.")
        found[name.rpartition(".")[2]] = parse_value(text)
    changed = type(schedule)(**{**schedule.model_dump(), **found})
    assert highest_rate(changed, 100) == 3.2e-5
    factor = 3.2e-5 / 1e-3
    for step in range(100):
        assert changed.at(step, 100) == pytest.approx(factor * schedule.at(step, 100), rel=0.06)


def test_a_schedule_without_a_setting_is_told_in_words() -> None:
    schedule = OptaxSchedule(name="cosine_decay_schedule", options={"init_value": 1e-3, "decay_steps": "total"})
    found = advise(reading(2e-4), None, "no race was asked for", schedule, 0, 50)
    assert found.overrides == () and "multiply all its rates by 0.2" in found.sentence


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_pressed_schedule_keeps_the_mean_and_the_peak(schedule: Schedule) -> None:
    shares = np.array(pressed(schedule, 1000, 40))
    whole = np.array([schedule.at(step, 1000) for step in range(1000)]) / 1e-3
    assert shares.mean() == pytest.approx(whole.mean(), rel=0.05)
    assert (
        len(shares) == 40 and shares.max() <= 1.0 and shares.max() == pytest.approx(whole.max(), rel=0.1)
    )  # a peak of one step is a mean with its neighbours here


def test_a_phase_of_the_same_length_is_not_pressed() -> None:
    schedule = Linear(peak=1e-3, warmup=5)
    assert pressed(schedule, 30, 30) == [schedule.at(step, 30) / 1e-3 for step in range(30)]


def test_intervals_are_those_of_scipy() -> None:
    losses = np.random.default_rng(0).normal(1.0, 0.1, (3, 4)) + np.array([[0.5], [0.0], [0.02]])
    found = judge((1e-5, 1e-4, 1e-3), losses, 40, 100)
    assert found.best == (1e-4 if losses[1].mean() < losses[2].mean() else 1e-3)
    best = int(np.argmin(losses.mean(axis=1)))
    for row, racer in zip(losses, found.racers, strict=True):
        low, high = stats.t.interval(0.95, 3, row.mean(), stats.sem(row))
        assert (racer.low, racer.high) == (pytest.approx(low), pytest.approx(high))
        if racer.rate != found.best:
            paired = stats.ttest_rel(row, losses[best]).confidence_interval(0.95)
            assert racer.clearly == (paired.low > 0) and racer.behind == pytest.approx((row - losses[best]).mean())
    assert found.racers[0].clearly


def test_a_rate_that_broke_is_last_and_all_broken_have_no_best() -> None:
    found = judge((1e-4, 1e-1), np.array([[0.5, 0.6], [0.4, math.inf]]), 40, 10)
    assert found.best == 1e-4 and found.racers[1].clearly and found.racers[1].low is None
    assert judge((1e-1,), np.array([[math.inf]]), 40, 0).best is None


def test_a_training_breaks_by_steps_in_a_row() -> None:
    def course(flags: str) -> list[Step]:
        return [Step(1e-3, 1.0, flag == "y") for flag in flags]

    assert holds(course("yyny" * 5), 2) and not holds(course("yynny"), 2)


# -- advice -----------------------------------------------------------------------------------------------------------------


def reading(rate: float | None, *reasons: str) -> Reading:
    return Reading(rate, reasons, rate, rate and 10 * rate, (rate,), 1.6, 0.5, 1.1, 0.05)


def race(best: float) -> Race:
    """Three rates of which one is clearly the best."""
    rates = (best / 10, best, best * 10)
    return judge(rates, np.array([[1.0, 1.01], [0.5, 0.51], [1.2, 1.21]]), 40, 100)


def broken() -> Race:
    return judge((1e-1, 1.0), np.full((2, 2), math.inf), 40, 0)


@pytest.mark.parametrize(
    ("read", "raced", "rate", "agree", "told"),
    [
        (reading(3e-4), race(3e-4), 3e-4, True, "they agree on about 3.0e-04"),
        (reading(3e-4), race(1e-4), 1.7e-4, True, "they agree on about 1.7e-04"),
        (reading(3e-4), race(3e-5), 3e-5, False, "they disagree by a factor of 10"),
        (reading(3e-4), None, 3e-4, None, "the range test suggests 3.0e-04; none"),
        (reading(3e-4), broken(), None, False, "every rate of the race broke"),
        (reading(3e-4, "seeds disagree"), race(1e-4), 1e-4, None, "no clear answer from the range test (seeds disagree)"),
        (reading(None, "widen it"), None, None, None, "no clear answer: widen it"),
        (reading(3e-4, "seeds disagree"), None, None, None, "no clear answer: seeds disagree"),
    ],
)
def test_the_advice(read: Reading, raced: Race | None, rate: float | None, agree: bool | None, told: str) -> None:
    found = advise(read, raced, "none", Linear(peak=1e-3), 2, 100)
    assert (found.rate, found.agree) == (rate, agree) and told in found.sentence
    assert found.overrides == (() if rate is None else (f"phases.2.optimizer.schedule.peak={rate:.1e}",))
