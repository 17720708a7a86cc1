from __future__ import annotations

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.batch import collate, join, spec
from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.pack import PackedPlan, best_fit, packed_width
from jaxtune.data.plan import Plan


def packed(lengths, width: int, **more) -> PackedPlan:
    return PackedPlan(rows=len(lengths), lengths=np.asarray(lengths), widths=(width,), **{"batch_size": 4, **more})


@st.composite
def plans(draw) -> PackedPlan:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=80))
    divisor = draw(st.sampled_from([1, 2, 4]))
    width = draw(st.integers(40, 90))
    size = {"batch_size": divisor * draw(st.integers(1, 4))}
    if draw(st.booleans()):
        size = {"batch_size": None, "batch_tokens": width * divisor * draw(st.integers(1, 3)) + draw(st.integers(0, 39))}
    return packed(lengths, width, divisor=divisor, seed=draw(st.integers(0, 3)), shuffle=draw(st.booleans()), **size)


@given(plans(), st.integers(0, 2))
def test_an_epoch_holds_every_example_once_and_no_row_overflows(plan: PackedPlan, number: int):
    epoch = plan.epoch(number)
    rows = np.concatenate([planned.rows.ravel() for planned in epoch])
    assert sorted(rows[rows >= 0]) == list(range(plan.rows))
    assert len(epoch) == plan.steps(number)
    for planned in epoch:
        assert planned.width == plan.widths[0]
        assert len(planned.rows) == plan.batch_rows(planned.width) and len(planned.rows) % plan.divisor == 0
        for row in planned.rows:
            assert plan.lengths[row[row >= 0]].sum() <= planned.width
            assert (row[: (row >= 0).sum()] >= 0).all()  # no gap between examples
    assert sum(plan.tokens(planned) for planned in epoch) == plan.lengths.sum()
    assert sum(planned.examples for planned in epoch) == plan.rows
    places = sum(len(planned.rows) * planned.width for planned in epoch)
    assert plan.real_token_share() == pytest.approx(plan.lengths.sum() / places)


@given(plans(), st.integers(0, 60))
def test_a_batch_is_a_pure_function_of_its_number(plan: PackedPlan, step: int):
    epoch, index = plan.locate(step)
    expected = plan.epoch(epoch)[index].rows
    for other in (plan.batch(step), pickle.loads(pickle.dumps(plan)).batch(step)):
        np.testing.assert_array_equal(other.rows, expected)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(30, 50))
def test_it_is_best_fit_decreasing(lengths: list[int], width: int):
    """Against the plain search through all open rows."""
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        holding = [space for space in left if space >= length]
        if holding:
            left[left.index(min(holding))] -= length
        else:
            left.append(width - length)
    found = best_fit(np.array(lengths), width)
    spaces = width - np.bincount(found, weights=sorted(lengths, reverse=True)).astype(int)
    assert sorted(spaces) == sorted(left)


def log_normal(rows: int, width: int, mean: float = 5.0, spread: float = 0.9) -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(mean, spread, rows).astype(int), 2, width)


@pytest.mark.parametrize(
    ("lengths", "width"),
    [(log_normal(20_000, 1024), 1024), (log_normal(6_000, 2048), 2048), (log_normal(5_000, 512, 4.5, 0.6), 512),
     (np.random.default_rng(1).integers(20, 600, 3_000), 1024)],
)  # fmt: skip
def test_97_percent_of_the_places_hold_real_tokens(lengths, width):
    plan = packed(lengths, width, batch_size=8)
    assert plan.real_token_share() >= 0.97
    whole = [planned for planned in plan.epoch(0) if (planned.rows[:, 0] >= 0).all()]
    assert np.mean([plan.tokens(planned) / (8 * width) for planned in whole]) >= 0.98
    assert Plan(rows=len(lengths), lengths=lengths, widths=(width,), batch_size=8).real_token_share() < 0.65


def test_the_real_bbc_fills_97_percent(bbc_encoded):
    lengths = np.minimum(bbc_encoded.full_lengths, 1024)
    plan = packed(lengths, packed_width(lengths), batch_size=8)
    assert plan.widths[0] <= 2048 and plan.real_token_share() >= 0.97


def test_the_width_is_the_narrowest_that_is_good_enough():
    assert packed_width(np.array([10] * 40)) == 40  # one fits 16, two 24, three 32; four fill 40
    assert packed_width(np.full(100, 64)) == 64
    assert packed_width(np.array([3])) == 8
    lengths = log_normal(3_000, 700)
    assert packed_width(lengths) == 704 and packed(lengths, 704, batch_size=1).real_token_share() >= 0.98
    with pytest.raises(ConfigError, match="no rows"):
        packed_width(np.array([], int))


def test_a_hundred_thousand_rows_are_packed_in_a_few_seconds():
    lengths = log_normal(100_000, 2048)
    started = time.process_time()
    plan = packed(lengths, 2048, batch_size=16)
    plan.batch(plan.steps() * 7 + 3)
    assert time.process_time() - started < 3


def test_seed_and_epoch_change_the_company_and_the_order():
    lengths = log_normal(400, 256, 4.0)
    plan, other = packed(lengths, 256, seed=1), packed(lengths, 256, seed=2)

    def company(p: PackedPlan, epoch: int) -> list[frozenset[int]]:
        return [frozenset(row[row >= 0].tolist()) for planned in p.epoch(epoch) for row in planned.rows if row[0] >= 0]

    seen = [company(plan, 0), company(plan, 1), company(other, 0)]
    assert seen[0] != seen[1] and seen[0] != seen[2] and company(plan, 0) == seen[0]
    together = [len(set(seen[0]) & set(one)) / len(seen[0]) for one in seen[1:]]
    assert max(together) < 0.5
    assert packed(lengths, 256, shuffle=False).batch(0).rows.tolist() == packed(lengths, 256, shuffle=False, seed=9).batch(0).rows.tolist()


def test_what_cannot_be_packed_is_said():
    for widths in ((8, 16), None):
        with pytest.raises(ConfigError, match="packing"):
            PackedPlan(rows=2, lengths=None if widths is None else np.array([3, 4]), widths=widths, batch_size=2)
    with pytest.raises(ConfigError, match="1 rows are longer than the widest batch of 16 tokens"):
        packed([3, 17], 16)
    with pytest.raises(ConfigError, match="does not divide by 3"):
        packed([3], 16, divisor=3)
    assert replace(packed([3, 4], 16), batch_size=2).batch(0).rows.shape == (2, 2)


# -- batches ----------------------------------------------------------------------------------------------------------------

LENGTHS = np.random.default_rng(3).integers(3, 30, 61)
EXAMPLES = Examples(
    {
        "tokens": Ragged.of([np.arange(100 * n, 100 * n + length) for n, length in enumerate(LENGTHS)]),
        "token_weight": Ragged.of([np.arange(length) / 8 for length in LENGTHS], np.float32),
    }
)
PLAN = packed(LENGTHS, 64, seed=5)
STOP = 2 * PLAN.steps() + 2


def read(plan: Plan = PLAN, examples: Examples = EXAMPLES, **options) -> list:
    from jaxtune.data.pipeline import batches

    with batches(examples, plan, **{"stop": STOP, "seed": 9, **options}) as reader:
        return list(reader)


def same(one: list, other: list) -> bool:
    def told(batch) -> tuple:
        arrays = {name: (array.dtype, array.tolist()) for name, array in batch.arrays.items()}
        return batch.number, batch.examples, batch.tokens, batch.width, batch.ids.tolist(), arrays

    return [told(batch) for batch in one] == [told(batch) for batch in other]


@pytest.fixture(scope="module")
def straight() -> list:
    return read(threads=0)


def test_every_example_stands_whole_in_a_segment_of_its_own(straight):
    seen = []
    for batch in straight[: PLAN.steps()]:
        arrays = batch.arrays
        assert {name: (a.shape, str(a.dtype)) for name, a in arrays.items()} == {
            "tokens": ((4, 64), "int32"), "segment_ids": ((4, 64), "int32"), "positions": ((4, 64), "int32"),
            "token_weight": ((4, 64), "float32"), "loss_weight": ((4,), "float32"), "example_id": ((4,), "int32"),
        }  # fmt: skip
        found = []
        for row in range(4):
            segments = arrays["segment_ids"][row]
            assert (np.diff(segments[segments > 0], prepend=1) >= 0).all() and arrays["loss_weight"][row] == (segments.max() > 0)
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                number = int(arrays["tokens"][row][here][0]) // 100
                np.testing.assert_array_equal(arrays["tokens"][row][here], EXAMPLES.row(number)["tokens"])
                np.testing.assert_array_equal(arrays["token_weight"][row][here], EXAMPLES.row(number)["token_weight"])
                np.testing.assert_array_equal(arrays["positions"][row][here], np.arange(LENGTHS[number]))
                found.append(number)
            if segments.max():
                assert arrays["example_id"][row] == found[-segments.max()]
            else:
                assert arrays["example_id"][row] == -1
            assert not arrays["token_weight"][row][segments == 0].any()
        assert batch.ids.tolist() == found and batch.examples == len(found) and batch.tokens == LENGTHS[found].sum()
        seen += found
    assert sorted(seen) == list(range(len(LENGTHS)))


def test_it_can_start_anywhere(straight):
    for start in range(STOP + 1):
        assert same(read(start=start, threads=0), straight[start:])


@pytest.mark.parametrize("options", [{"threads": 3}, {"workers": 2}])
def test_threads_and_workers_change_nothing(straight, options):
    assert same(read(**options), straight)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_have_the_same_rows(straight, hosts):
    shares = [read(host=host, hosts=hosts, threads=0) for host in range(hosts)]
    for number, whole in enumerate(straight):
        assert sorted(id for share in shares for id in share[number].ids.tolist()) == sorted(whole.ids.tolist())
        for host, share in enumerate(shares):
            assert (share[number].examples, share[number].tokens) == (whole.examples, whole.tokens)
            for name, array in share[number].arrays.items():
                np.testing.assert_array_equal(array, whole.arrays[name][host::hosts])


def test_a_view_keeps_the_numbers_of_the_whole():
    part = EXAMPLES.subset(np.arange(40, 61))
    plan = packed(part.lengths, 64, batch_size=2)
    found = read(plan, part, stop=plan.steps(), threads=0)
    assert sorted(id for batch in found for id in batch.ids.tolist()) == list(range(40, 61))


def test_packed_rows_have_the_shapes_that_spec_tells():
    row = join([EXAMPLES.row(0), EXAMPLES.row(1)])
    batch = collate([row, None], 64)
    told = spec(row, 2, 64)
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {name: (s.shape, s.dtype) for name, s in told.items()}
    from jaxtune.data.pipeline import template

    assert set(template(EXAMPLES, PLAN)) == set(row) and set(template(EXAMPLES, plan_of_rows())) == set(EXAMPLES.row(0))


def plan_of_rows() -> Plan:
    return Plan(rows=len(LENGTHS), lengths=LENGTHS, widths=(64,), batch_size=4)


def test_what_there_is_one_of_in_a_row_cannot_be_packed():
    with pytest.raises(ConfigError, match="an example has its own label"):
        join([{"tokens": np.array([1, 2]), "label": 1, "example_id": 0}])


def test_augmentation_of_targets_is_refused():
    from jaxtune.data.transforms.augment import RandomDeletion

    with pytest.raises(ConfigError, match="would move the tokens that are to be learned"):
        read(augment=(RandomDeletion(share=0.3).protect([2]),))


def test_a_weight_per_token_or_an_error():
    row = {"tokens": np.array([1, 2, 3]), "token_weight": np.ones(2, np.float32), "example_id": 4}
    with pytest.raises(DataError, match="row 4: expected one value per token, found tokens 3, token_weight 2"):
        collate([row, None], 8)


@settings(max_examples=30)
@given(plans())
def test_packed_targets_are_those_of_the_single_rows(plan: PackedPlan):
    """What a loss sums up: (token before it in its segment, target, weight), packed and unpacked alike."""

    def pairs(batch: dict[str, np.ndarray]) -> list[tuple[int, int, float]]:
        tokens, segments, weight = batch["tokens"], batch["segment_ids"], batch["token_weight"]
        counted = (weight[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        return sorted(zip(tokens[:, :-1][counted].tolist(), tokens[:, 1:][counted].tolist(), weight[:, 1:][counted].tolist(), strict=True))

    random = np.random.default_rng(0)
    rows = [
        {"tokens": 100 * n + np.arange(length), "token_weight": random.integers(0, 2, length).astype(np.float32), "example_id": n}
        for n, length in enumerate(plan.lengths)
    ]
    single = pairs(collate(rows, 100))
    together: list[tuple[int, int, float]] = []
    for planned in plan.epoch(0):
        packs = [join([rows[n] for n in pack if n >= 0]) if pack[0] >= 0 else None for pack in planned.rows]
        together += pairs(collate(packs, planned.width, rows[0]))
    assert sorted(together) == single
