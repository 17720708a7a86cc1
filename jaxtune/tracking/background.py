"""A sink that works in a thread of its own: a service that is slow, or never answers, costs its rows and not the training's time.

Everything that may talk to the service happens there: opening, every row, the end. Rows wait in a queue of limited length; when it is
full they are dropped, and that is said once. At the end the thread is given a few seconds to finish, then it is left behind.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.core.files import plain
from jaxtune.tracking.base import Sink

_LOG = logging.getLogger(__name__)
WAITING_ROWS = 1000


class InBackground(Sink):
    """Hands rows to the sink that `start` makes.

    Args:
        name: of the tracker, for messages.
        start: opens the service; called in the thread.
        close_seconds: how long the end of the run waits for what is still to be sent.
    """

    def __init__(self, name: str, start: Callable[[], Sink], *, close_seconds: float, waiting_rows: int = WAITING_ROWS):
        self.name, self.start, self.close_seconds = name, start, close_seconds
        self.rows: queue.Queue[Mapping[str, Any] | None] = queue.Queue(waiting_rows)
        self.error: Exception | None = None
        self.dropped = 0
        self.thread = threading.Thread(target=self.work, name=f"jaxtune tracker {name}", daemon=True)
        self.thread.start()

    def work(self) -> None:
        try:
            sink = self.start()
            while (row := self.rows.get()) is not None:
                sink.log(row)
            sink.close()
        except BaseException as error:  # a client may call sys.exit when it finds no login
            self.error = error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")

    def log(self, row: Mapping[str, Any]) -> None:
        """Never waits.

        Raises:
            Exception: what the service failed with, so that the tracker is given up.
        """
        if self.error is not None:
            raise self.error
        try:
            self.rows.put_nowait(dict(row))
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _LOG.warning("the tracker %s does not keep up: rows are left out there; metrics.jsonl keeps all numbers", self.name)

    def close(self) -> None:
        """Waits at most `close_seconds`.

        Raises:
            Exception: what the service failed with.
            TimeoutError: it did not end in time.
        """
        end = time.monotonic() + self.close_seconds
        while self.thread.is_alive() and time.monotonic() < end:
            try:
                self.rows.put(None, timeout=0.05)
                break
            except queue.Full:
                continue
        self.thread.join(max(0.0, end - time.monotonic()))
        if self.error is not None:
            raise self.error
        if self.thread.is_alive():
            raise TimeoutError(f"not done {self.close_seconds:g} s after the last row")


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """`<split>/<name>` of the finite numbers of a row; lists and words are left to metrics.jsonl."""
    split = row.get("split", "run")
    return {
        f"{split}/{name}": float(value)
        for name, value in plain(row).items()
        if name not in ("step", "split", "time") and isinstance(value, float | int) and not isinstance(value, bool)
    }
