"""Successive halving and Hyperband's brackets, against hand-made curves and the papers' numbers."""

from __future__ import annotations

import math
import random

import pytest

from jaxtune.search.rungs import Past, Rungs, goes_on, value_at


def test_ladders_of_the_papers_example() -> None:
    """R = 81, eta = 3: rungs at 1, 3, 9, 27, and 81, 34, 15, 8, 5 trials (Li et al. 2018, table 1)."""
    rungs = Rungs.of(1, 81, 3)
    assert rungs.ladders == ((1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ())
    assert rungs.shares == pytest.approx([count / 143 for count in (81, 34, 15, 8, 5)])


def test_brackets_have_their_shares_at_every_moment() -> None:
    rungs = Rungs.of(1, 81, 3)
    counts = [0] * 5
    for number in range(143):
        counts[rungs.bracket(number)] += 1
        assert all(abs(count - share * (number + 1)) < 1.5 for count, share in zip(counts, rungs.shares, strict=True))
    assert counts == [81, 34, 15, 8, 5]


def test_one_bracket_is_successive_halving() -> None:
    assert Rungs.of(5, 100, 4, brackets=1) == Rungs(4, ((5, 20, 80),), (1.0,))


def test_the_best_third_goes_on() -> None:
    for higher in (True, False):
        values = random.Random(3).sample(range(100), 30)
        kept = [value for value in values if goes_on(value, [other for other in values if other != value], 3, higher)]
        assert sorted(kept) == sorted(sorted(values, reverse=higher)[:10])


def test_the_first_goes_on_and_nan_never_does() -> None:
    assert goes_on(0.1, [], 3, True)
    assert goes_on(0.2, [0.1], 3, True) and not goes_on(0.1, [0.2], 3, True)
    assert not goes_on(math.nan, [], 3, True)
    assert goes_on(0.0, [math.nan, math.nan], 3, True)


def test_equals_go_on_together() -> None:
    assert all(goes_on(0.9, [0.9] * count, 3, True) for count in range(1, 8))


def test_a_rung_between_evaluations_is_met_at_the_next() -> None:
    rungs = Rungs(3, ((5, 15),), (1.0,))
    others = [Past(0, {4: 0.9, 8: 0.9, 16: 0.95}, True)]
    assert rungs.stopped_at(1, {4: 0.1}, others, True) is None  # below the rung
    assert rungs.stopped_at(1, {4: 0.1, 8: 0.2}, others, True) == 5
    assert rungs.stopped_at(1, {4: 0.1, 8: 0.95}, others, True) is None
    assert rungs.stopped_at(1, {4: 0.1, 8: 0.95, 12: 0.95}, others, True) is None  # asked once, at the rung
    assert rungs.stopped_at(1, {4: 0.1, 8: 0.94, 12: 0.94, 16: 0.94}, others, True) == 15


def test_brackets_do_not_compete() -> None:
    rungs = Rungs(3, ((5,), (5,)), (0.5, 0.5))
    assert [rungs.bracket(number) for number in range(4)] == [0, 1, 0, 1]
    assert rungs.stopped_at(1, {5: 0.1}, [Past(0, {5: 0.9}, True)], True) is None
    assert rungs.stopped_at(2, {5: 0.1}, [Past(0, {5: 0.9}, True)], True) == 5


def test_who_ended_by_itself_counts_above() -> None:
    assert value_at(Past(0, {4: 0.3, 8: 0.5}, True), 20) == 0.5
    assert value_at(Past(0, {4: 0.3, 8: 0.5}, False), 20) is None
    assert value_at(Past(0, {}, True), 20) is None


def test_the_answer_does_not_depend_on_the_order_of_the_others() -> None:
    rungs = Rungs.of(1, 27, 3, brackets=1)
    dice = random.Random(0)
    others = [Past(number, {1: dice.random(), 3: dice.random()}, False) for number in range(12)]
    answers = {rungs.stopped_at(50, {1: 0.6}, dice.sample(others, len(others)), True) for _ in range(5)}
    assert len(answers) == 1
