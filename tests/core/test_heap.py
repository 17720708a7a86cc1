"""When free memory is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jaxtune.core import heap
from jaxtune.core.heap import KEEPS, Heap


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often memory was given back, in a process that keeps its heap."""
    times: list[int] = []
    monkeypatch.setenv("GLIBC_TUNABLES", KEEPS)
    monkeypatch.setattr(heap, "give_back", lambda: times.append(1))
    return times


def steps(watched: Heap, monkeypatch: pytest.MonkeyPatch, resident: list[float]) -> None:
    for value in resident:
        monkeypatch.setattr(heap, "resident_bytes", lambda value=value: int(value * 1e9))
        watched.after_step()


def test_growth_is_given_back_once(given: list[int], monkeypatch: pytest.MonkeyPatch):
    watched = Heap()
    steps(watched, monkeypatch, [3.0, 3.1, 3.5])
    assert not given  # what steps usually need
    steps(watched, monkeypatch, [4.5, 3.6, 3.6, 3.6])
    assert len(given) == 1


def test_a_wider_batch_is_not_taken_for_waste_for_ever(given: list[int], monkeypatch: pytest.MonkeyPatch):
    watched = Heap()
    steps(watched, monkeypatch, [2.0] + [3.6, 2.0] * 30)
    assert 1 <= len(given) <= heap.TRIES


def test_other_work_is_always_followed_by_giving_back(given: list[int]):
    Heap().after_other_work()
    assert len(given) == 1


def test_a_heap_that_is_not_kept_is_left_alone(given: list[int], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    watched = Heap()
    watched.after_other_work()
    steps(watched, monkeypatch, [1.0, 9.0])
    assert not given


@pytest.mark.parametrize(("share", "keeps"), [(0.1, 0), (0.3, 1)])
def test_large_blocks_are_kept_where_the_kernel_takes_much_of_the_steps(
    given: list[int], monkeypatch: pytest.MonkeyPatch, share: float, keeps: int
):
    kept: list[int] = []
    seconds = iter(range(100))
    monkeypatch.setattr(heap, "keep_large_blocks", lambda: kept.append(1))
    monkeypatch.setattr(heap, "processor_seconds", lambda: ((n := next(seconds)) * (1 - share), n * share))
    steps(Heap(), monkeypatch, [2.0] * 20)
    assert len(kept) == keeps


LARGE = """
import resource, time
import numpy as np
from jaxtune.core.heap import keep_large_blocks
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(75_000_000)  # 600 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
keep_large_blocks()
faults()
print(before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_kept_blocks_need_no_new_pages():
    done = subprocess.run([sys.executable, "-c", LARGE], stdout=subprocess.PIPE, text=True, check=True, env={"GLIBC_TUNABLES": KEEPS})
    before, after = map(int, done.stdout.split())
    assert before > 100 and after < before / 10


HOLES = """
import numpy as np
from jaxtune.core.heap import give_back, resident_bytes
blocks = [np.ones(1_000_000) for _ in range(60)]  # 480 MB
last = blocks[-1]
del blocks  # the last one, on top of the heap, keeps all below it
before = resident_bytes()
give_back()
print(before / 1e6, resident_bytes() / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_free_memory_below_a_living_block_really_goes_back():
    done = subprocess.run([sys.executable, "-c", HOLES], stdout=subprocess.PIPE, text=True, check=True, env={"GLIBC_TUNABLES": KEEPS})
    before, after = map(float, done.stdout.split())
    assert before > 480 and after < 150
