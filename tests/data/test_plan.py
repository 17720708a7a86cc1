from __future__ import annotations

import pickle
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.core.errors import ConfigError
from jaxtune.data.plan import Plan, batch_problems, choose_widths


def bbc_like(rows: int = 2225) -> np.ndarray:
    return np.minimum(np.random.default_rng(0).lognormal(4.5, 0.6, rows).astype(int) + 1, 256)


@st.composite
def plans(draw) -> Plan:
    lengths = np.array(draw(st.lists(st.integers(0, 64), min_size=1, max_size=120)))
    widths = tuple(sorted({*draw(st.sets(st.integers(1, 63), max_size=5)), 64}))
    divisor = draw(st.sampled_from([1, 2, 4]))
    if draw(st.booleans()):
        size = {"batch_size": divisor * draw(st.integers(1, 9))}
    else:
        size = {"batch_tokens": 64 * divisor * draw(st.integers(1, 4)) + draw(st.integers(0, 63))}
    return Plan(
        rows=len(lengths),
        lengths=lengths,
        widths=widths,
        divisor=divisor,
        seed=draw(st.integers(0, 5)),
        shuffle=draw(st.booleans()),
        **size,
    )


@given(plans(), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_in_batches_that_fit(plan: Plan, number: int):
    epoch = plan.epoch(number)
    rows = np.concatenate([planned.rows for planned in epoch])
    assert sorted(rows[rows >= 0]) == list(range(plan.rows))
    assert len(epoch) == plan.steps(number)
    for planned in epoch:
        assert (
            planned.width in plan.widths and len(planned.rows) == plan.batch_rows(planned.width) and len(planned.rows) % plan.divisor == 0
        )
        lengths = plan.lengths[planned.rows[planned.rows >= 0]]
        assert lengths.max() <= planned.width
        assert planned.width == min(width for width in plan.widths if width >= lengths.max())  # never wider than needed
    padded = [planned for planned in epoch if (planned.rows < 0).any()]
    assert len(padded) <= 1
    assert all(planned.width == min(p.width for p in epoch) for planned in padded)
    share = plan.lengths.sum() / sum(planned.width * len(planned.rows) for planned in epoch)
    assert plan.real_token_share() == pytest.approx(share)
    assert sum(map(plan.tokens, epoch)) == plan.lengths.sum()


@given(plans(), st.integers(0, 200))
def test_a_batch_is_a_pure_function_of_its_number(plan: Plan, step: int):
    epoch, index = plan.locate(step)
    assert epoch * plan.steps() + index == step
    again = pickle.loads(pickle.dumps(plan))
    for other in (plan.batch(step), again.batch(step), again.epoch(epoch)[index]):
        np.testing.assert_array_equal(other.rows, plan.epoch(epoch)[index].rows)


def rows_in_order(plan: Plan, epoch: int) -> list[int]:
    return np.concatenate([planned.rows for planned in plan.epoch(epoch)]).tolist()


def test_seed_and_epoch_change_the_order_and_the_company():
    lengths = bbc_like(300)
    plan = Plan(rows=300, lengths=lengths, widths=(64, 128, 256), batch_size=16, seed=1)
    other = Plan(rows=300, lengths=lengths, widths=(64, 128, 256), batch_size=16, seed=2)
    orders = [rows_in_order(plan, 0), rows_in_order(plan, 1), rows_in_order(other, 0)]
    assert len({tuple(order) for order in orders}) == 3
    sets = [{frozenset(planned.rows.tolist()) for planned in p.epoch(e)} for p, e in ((plan, 0), (plan, 1))]
    assert not sets[0] & sets[1]
    widths = [planned.width for planned in plan.epoch(0)]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_evaluation_takes_the_longest_first():
    lengths = bbc_like(100)
    plan = Plan(rows=100, lengths=lengths, widths=(64, 128, 256), batch_size=16, shuffle=False)
    order = [row for row in rows_in_order(plan, 0) if row >= 0]
    assert lengths[order].tolist() == sorted(lengths, reverse=True)
    assert rows_in_order(plan, 1) == rows_in_order(plan, 0)


def test_without_lengths_there_is_one_shape():
    plan = Plan(rows=10, batch_size=4)
    assert [planned.width for planned in plan.epoch(0)] == [None] * 3
    assert sorted(rows_in_order(plan, 0)) == [-1, -1, *range(10)]
    assert plan.real_token_share() == pytest.approx(10 / 12) and plan.tokens(plan.batch(0)) == 0
    assert rows_in_order(Plan(rows=10, batch_size=4, shuffle=False), 0) == [*range(10), -1, -1]


def test_a_million_rows_are_planned_quickly():
    lengths = np.tile(bbc_like(10_000), 100)
    started = time.perf_counter()
    widths = choose_widths(lengths, 256, batch_size=32)
    plan = Plan(rows=len(lengths), lengths=lengths, widths=widths, batch_size=32)
    plan.batch(plan.steps() * 1000 + 5)  # no epoch before it is needed
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rows": 0, "batch_size": 4}, "no rows"),
        ({"rows": 4}, "neither"),
        ({"rows": 4, "batch_size": 4, "batch_tokens": 4}, "both"),
        ({"rows": 4, "batch_size": 6, "divisor": 4}, r"batch_size 6 does not divide by 4 .* use for example 8"),
        ({"rows": 4, "batch_tokens": 64}, "use batch_size"),
        ({"rows": 2, "lengths": np.array([3, 9]), "widths": (4, 8), "batch_size": 2}, r"1 rows are longer .* 8 tokens \(rows 1\)"),
        ({"rows": 1, "lengths": np.array([3]), "widths": (4, 8), "batch_tokens": 31, "divisor": 4}, "at least 32"),
    ],
)
def test_impossible_plans_say_what_to_do(arguments, said):
    with pytest.raises(ConfigError, match=said):
        Plan(**arguments)


def test_batch_problems_is_silent_when_all_is_well():
    assert batch_problems(32, None, None, 8) == [] and batch_problems(None, 2048, (64, 256), 8) == []


# -- widths


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 48), min_size=1, max_size=60),
    st.integers(1, 3),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([0.5, 0.9, 1.0]),
)
def test_the_choice_is_the_best_of_all(lengths: list[int], at_most: int, batch_size: int | None, enough: float):
    lengths = np.array(lengths)
    candidates = range(8, 48, 8)

    def share(widths: tuple[int, ...]) -> float:
        return Plan(rows=len(lengths), lengths=lengths, widths=widths, batch_size=batch_size or 1).real_token_share()

    best = {n: max(share((*some, 48)) for some in combinations(candidates, n - 1)) for n in range(1, at_most + 1)}
    chosen = choose_widths(lengths, 48, 8, at_most, enough, batch_size)
    good = [n for n in best if best[n] >= enough - 1e-12]
    wanted = min(good) if good else min(n for n in best if best[n] == max(best.values()))
    assert chosen[-1] == 48 and list(chosen) == sorted(set(chosen)) and len(chosen) == wanted
    assert share(chosen) == pytest.approx(best[wanted])


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"batch_size": 32}, {"batch_size": 64}, {"batch_tokens": 8192}])
def test_bbc_like_lengths_reach_83_percent_real_tokens(size):
    lengths = bbc_like()
    widths = choose_widths(lengths, 256, batch_size=size.get("batch_size"))
    plan = Plan(rows=len(lengths), lengths=lengths, widths=widths, **size)
    assert len(widths) <= 8 and plan.real_token_share() >= 0.85
    assert Plan(rows=len(lengths), lengths=lengths, widths=(256,), batch_size=32).real_token_share() < 0.42


@pytest.mark.parametrize("limit", [128, 256, 512])
def test_the_real_bbc_reaches_90_percent_with_few_widths(bbc_encoded, limit):
    lengths = np.minimum(bbc_encoded.full_lengths, limit)
    widths = choose_widths(lengths, limit, batch_size=32)
    plan = Plan(rows=len(lengths), lengths=lengths, widths=widths, batch_size=32)
    assert len(widths) <= 3 and plan.real_token_share() >= 0.9


def test_the_last_width_is_the_maximum_even_when_no_row_is_that_long():
    assert choose_widths(np.array([3, 5]), 100)[-1] == 100
    assert choose_widths(np.array([100]), 100) == (100,)
    assert choose_widths(np.array([0]), 4) == (4,)
    for lengths in (np.array([101]), np.array([], int)):
        with pytest.raises(ConfigError, match="widths up to 100"):
            choose_widths(lengths, 100)
