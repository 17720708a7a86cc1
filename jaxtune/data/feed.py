"""Keeps a few batches placed on the devices ahead of the training step, in one background thread.

The thread both fetches and places, so the step neither waits for the host's data work nor for the copy to the device; the time
it had to wait all the same is counted and shown as the data-wait share.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Feed[Item, Placed](Iterator[Placed]):
    """Iterates over `put(item)` for the items of `iterator`, at most `depth` of them ahead of the consumer.

    An error of the iterator or of `put` is raised where the item would have come, after those before it. `wait_seconds` is the
    time that the consumer has waited in total. `close` (or leaving `with`) ends the thread and closes the iterator.
    """

    def __init__(self, iterator: Iterable[Item], put: Callable[[Item], Placed], depth: int = 2):
        if depth < 1:
            raise ValueError(f"depth {depth}: at least one batch must be on its way")
        self.wait_seconds = 0.0
        self._source = iterator
        self._put = put
        self._ready: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()  # (True, item) or (False, error or None at the end)
        self._room = threading.Semaphore(depth)
        self._closing = threading.Event()
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="jaxtune-feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Placed:
        if self._closing.is_set():
            raise self._end if self._end is not None else StopIteration
        before = time.perf_counter()
        good, value = self._ready.get()
        self.wait_seconds += time.perf_counter() - before
        if good:
            self._room.release()
            return value
        self._end = value
        self.close()
        raise value if value is not None else StopIteration

    def close(self) -> None:
        """Ends the thread, drops what it had placed, and closes the iterator. May be called again."""
        self._closing.set()
        self._room.release()
        self._thread.join()
        while not self._ready.empty():
            self._ready.get()
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Feed[Item, Placed]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            items = iter(self._source)
            while True:
                self._room.acquire()
                if self._closing.is_set():
                    return
                try:
                    item = next(items)
                except StopIteration:
                    break
                self._ready.put((True, self._put(item)))
                del item  # its memory must not wait for the next one
        except BaseException as error:
            self._ready.put((False, error))
        else:
            self._ready.put((False, None))
