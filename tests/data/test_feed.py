from __future__ import annotations

import threading
import time

import jax
import numpy as np
import pytest

from jaxtune.data.feed import Feed


class Source:
    """Counts up; remembers how far it was read and whether it was closed."""

    def __init__(self, stop: int = 10**9, fail_at: int = -1):
        self.read = 0
        self.closed = 0
        self.stop = stop
        self.fail_at = fail_at

    def __iter__(self):
        return self

    def __next__(self) -> int:
        if self.read == self.stop:
            raise StopIteration
        if self.read == self.fail_at:
            raise OSError("disk gone")
        self.read += 1
        return self.read - 1

    def close(self):
        self.closed += 1


def feed_threads() -> int:
    return sum(thread.name == "jaxtune-feed" for thread in threading.enumerate())


def test_items_come_in_order_and_then_end():
    source = Source(stop=20)
    with Feed(source, lambda item: item * 2) as feed:
        assert list(feed) == list(range(0, 40, 2))
        assert next(feed, None) is None
    assert source.closed and not feed_threads()


def test_at_most_depth_items_are_ahead():
    source, placed = Source(), []
    with Feed(source, lambda item: placed.append(item) or item, depth=3) as feed:
        for taken in range(1, 6):
            next(feed)
            deadline = time.monotonic() + 5
            while len(placed) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert source.read == len(placed) == taken + 3


@pytest.mark.parametrize("where", ["iterator", "put"])
def test_errors_come_after_the_items_before_them(where):
    def put(item: int) -> int:
        if where == "put" and item == 3:
            raise OSError("disk gone")
        return item

    source = Source(fail_at=3 if where == "iterator" else -1)
    feed = Feed(source, put)
    assert [next(feed) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):  # it does not go on behind an error
        with pytest.raises(OSError, match="disk gone"):
            next(feed)
    assert source.closed and not feed_threads()


def test_waiting_is_counted():
    def slow(item: int) -> int:
        time.sleep(0.05)
        return item

    with Feed(Source(), slow, depth=1) as feed:
        for _ in range(4):
            next(feed)
        assert 0.1 < feed.wait_seconds < 2
    with Feed(Source(), lambda item: item) as feed:
        for _ in range(4):
            time.sleep(0.02)
            next(feed)
        assert feed.wait_seconds < 0.02


def test_closing_early_ends_the_thread_and_the_source():
    source = Source()
    feed = Feed(source, lambda item: item)
    next(feed)
    feed.close()
    feed.close()
    assert source.closed and not feed_threads()
    with pytest.raises(StopIteration):
        next(feed)
    with pytest.raises(ValueError, match="depth 0"):
        Feed(source, lambda item: item, depth=0)


def test_placing_on_devices_works_while_the_consumer_forbids_transfers():
    with Feed(({"a": np.full(8, n)} for n in range(5)), jax.device_put) as feed, jax.transfer_guard("disallow"):
        sums = [batch["a"] for batch in feed]
    assert [int(a[0]) for a in sums] == list(range(5))
