from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.pipeline import batches
from jaxtune.data.plan import Plan
from jaxtune.data.transforms.augment import RandomDeletion, RandomSwap

LENGTHS = np.random.default_rng(3).integers(3, 30, 41)
EXAMPLES = Examples(
    {"tokens": Ragged.of([[2, *range(10 + n, 10 + n + length - 2), 3] for n, length in enumerate(LENGTHS)]), "label": np.arange(41) % 5}
)
AUGMENT = (RandomDeletion(share=0.3).protect([2, 3]), RandomSwap(share=0.3).protect([2, 3]))


def plan_of(examples: Examples, **more) -> Plan:
    return Plan(rows=len(examples), lengths=examples.lengths, **{"widths": (8, 16, 32), "batch_size": 4, "seed": 5, **more})


PLAN = plan_of(EXAMPLES)
STOP = 2 * PLAN.steps() + 3  # into the third epoch


def read(examples: Examples = EXAMPLES, plan: Plan = PLAN, **options) -> list:
    with batches(examples, plan, **{"stop": STOP, "seed": 9, "augment": AUGMENT, **options}) as reader:
        return list(reader)


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(
        (a.number, a.examples, a.tokens, a.width) == (b.number, b.examples, b.tokens, b.width)
        and list(a.arrays) == list(b.arrays)
        and all(np.array_equal(a.arrays[name], b.arrays[name]) and a.arrays[name].dtype == b.arrays[name].dtype for name in a.arrays)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module")
def straight() -> list:
    return read()


def test_batches_follow_the_plan(straight):
    assert [batch.number for batch in straight] == list(range(STOP))
    for batch in straight:
        planned = PLAN.batch(batch.number)
        np.testing.assert_array_equal(batch.arrays["example_id"], planned.rows)
        assert batch.arrays["tokens"].shape == (4, batch.width) and batch.width == planned.width
        assert batch.examples == (planned.rows >= 0).sum() == batch.arrays["loss_weight"].sum()
        assert batch.tokens == LENGTHS[planned.rows[planned.rows >= 0]].sum()


def test_it_can_start_anywhere(straight):
    for start in range(STOP + 1):
        assert same(read(start=start, threads=0), straight[start:])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_change_nothing(straight, threads):
    assert same(read(threads=threads), straight)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_have_the_same_rows(straight, hosts):
    shares = [read(host=host, hosts=hosts) for host in range(hosts)]
    for number, whole in enumerate(straight):
        for host, share in enumerate(shares):
            batch = share[number]
            assert (batch.examples, batch.tokens, batch.width) == (whole.examples, whole.tokens, whole.width)
            for name, array in batch.arrays.items():
                np.testing.assert_array_equal(array, whole.arrays[name][host::hosts])


def test_augmentation_depends_on_row_epoch_and_seed_alone(straight):
    def by_row(read_batches, steps) -> dict:
        return {
            (batch.number // steps, int(id)): row[row > 0].tolist()
            for batch in read_batches
            for id, row in zip(batch.arrays["example_id"], batch.arrays["tokens"], strict=True)
            if id >= 0
        }

    here = by_row(straight, PLAN.steps())
    assert sum(here[0, n] != here[1, n] for n in range(41)) > 30
    other_plan = plan_of(EXAMPLES, batch_size=12, widths=(32,), seed=77)
    there = by_row(read(plan=other_plan, stop=2 * other_plan.steps()), other_plan.steps())
    assert all(here[key] == tokens for key, tokens in there.items())
    part = EXAMPLES.subset(np.arange(20, 41))
    plan = plan_of(part)
    assert all(here[key] == tokens for key, tokens in by_row(read(part, plan, stop=plan.steps()), plan.steps()).items())
    assert by_row(read(seed=10), PLAN.steps()) != here
    plain = by_row(read(augment=()), PLAN.steps())
    assert all(tokens == EXAMPLES.row(n)["tokens"].tolist() for (_, n), tokens in plain.items())


def test_without_an_end_it_goes_on_epoch_after_epoch():
    with batches(EXAMPLES, PLAN, start=10_000_000) as reader:
        assert next(reader).number == 10_000_000 and next(reader).number == 10_000_001
    assert read(start=STOP) == [] and read(start=STOP + 5) == []


def test_closing_and_going_on():
    reader = batches(EXAMPLES, PLAN)
    first = [next(reader), next(reader)]
    reader.close()
    reader.close()
    assert reader.position == 2
    assert same([*first, next(reader)], read(stop=3, augment=()))
    reader.close()


def test_images_have_no_width():
    examples = Examples({"image": np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1), "label": np.arange(10)})
    found = read(examples, Plan(rows=10, batch_size=4, shuffle=False), stop=3, augment=(), host=1, hosts=4)
    assert [batch.arrays["example_id"].tolist() for batch in found] == [[1], [5], [9]]
    assert found[0].arrays["image"].dtype == np.uint8 and found[0].width is None and found[0].tokens == 0
    last = read(examples, Plan(rows=10, batch_size=4, shuffle=False), stop=3, augment=(), host=3, hosts=4)[2]
    assert last.arrays["example_id"].tolist() == [-1] and last.arrays["image"].shape == (1, 2, 2, 1) and last.examples == 2


class Broken:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> np.ndarray:
        if index == 5:
            raise DataError("row 5: not an image")
        return np.zeros((2, 2, 1), np.uint8)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 1}])
def test_an_error_of_the_data_comes_through(options):
    with batches(Examples({"image": Broken()}), Plan(rows=8, batch_size=2, shuffle=False), **options) as reader:
        assert [next(reader).number, next(reader).number] == [0, 1]
        with pytest.raises(DataError, match="row 5: not an image"):
            next(reader)


def test_two_workers_give_the_same_and_are_revived(straight, caplog):
    with batches(EXAMPLES, PLAN, start=1, stop=STOP, seed=9, augment=AUGMENT, workers=2) as reader:
        found = [next(reader) for _ in range(4)]
        for child in psutil.Process().children():
            if "multiprocessing" in " ".join(child.cmdline()) and "resource_tracker" not in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
        found += list(reader)
    assert same(found, straight[1:])
    assert "a data worker died at batch" in caplog.text


class Deadly:
    """Ends the process that reads row 3."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> np.ndarray:
        if index == 3:
            time.sleep(0.3)  # so that the batches before it get out
            os._exit(9)
        return np.zeros((2, 2, 1), np.uint8)


def test_a_row_that_kills_its_worker_ends_in_an_error(monkeypatch, caplog):
    monkeypatch.setattr("jaxtune.data.pipeline.REVIVALS", 1)
    with batches(Examples({"image": Deadly()}), Plan(rows=8, batch_size=2, shuffle=False), workers=1) as reader:
        assert next(reader).number == 0
        with pytest.raises(DataError, match=r"died 2 times at batch 1 .*exit code 9.* rows of the batch: 2, 3$"):
            next(reader)
    assert caplog.text.count("starting the workers again") == 1


def test_what_does_not_fit_or_pickle_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        batches(EXAMPLES.subset([1, 2]), PLAN, hosts=3)
    assert "orders 41 rows, but there are 2 examples" in str(error.value) and "batches of 4 rows do not divide by 3 hosts" in str(
        error.value
    )

    class Locked(Broken):
        def __reduce__(self):
            raise TypeError("a lock")

    with pytest.raises(ConfigError, match=r'column "image" \(Locked\) cannot be sent .* use workers: 0'):
        batches(Examples({"image": Locked()}), Plan(rows=8, batch_size=2), workers=1)
