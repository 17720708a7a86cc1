"""Ends a run that hangs: steps, compilations, evaluations, saves and loads have time budgets; past one, all stacks are written.

A stuck collective never returns to Python, so nothing in the main thread can notice it. A thread watches the clock; should it
be starved as well (a lock held inside C++), `faulthandler`'s own C thread writes the stacks and ends the process, with code 1.
A stopped process (SIGSTOP) gets its time back, unless it was stopped for a minute longer than the budget: the C thread cannot know.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jaxtune.core.errors import HangError

FILE = "stacks.txt"
BUDGETS_SECONDS: Mapping[str, float] = {"load": 1800, "compile": 3600, "step": 900, "evaluation": 3600, "save": 1800}
_POLL_SECONDS = 1.0
_STARVED_SECONDS = 60.0  # how much longer the C thread waits
_REPORT_SECONDS = 5.0


class Watchdog:
    """`with Watchdog(folder) as watchdog: with watchdog.section("step"): ...`. Sections may nest; the inner one's budget counts.

    `report` is told the message before the process ends with exit code 70; it gets 5 seconds.
    """

    def __init__(
        self,
        folder: Path,
        budgets_seconds: Mapping[str, float] = BUDGETS_SECONDS,
        report: Callable[[str], None] | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ):
        self.path = folder / FILE
        self._budgets, self._report, self._poll_seconds = dict(budgets_seconds), report, poll_seconds
        self._current: tuple[str, float] | None = None  # section, deadline; replaced as a whole, so no lock is needed
        self._paused = 0.0  # seconds in which the process did not run; only the thread writes it
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: IO[str] | None = None

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """The body must end within the budget of `name`.

        Raises:
            KeyError: there is no such budget.
        """
        outer = self._current
        began = self._clock()
        self._current = name, began + self._budgets[name]
        try:
            yield
        finally:
            spent = self._clock() - began
            self._current = None if outer is None else (outer[0], outer[1] + spent)

    def __enter__(self) -> Watchdog:
        self._file = open(self.path, "a", encoding="utf-8")  # faulthandler needs it open
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def _clock(self) -> float:
        return time.monotonic() - self._paused

    def _watch(self) -> None:
        assert self._file is not None
        looked, longest = time.monotonic(), max(self._budgets.values())
        faulthandler.dump_traceback_later(longest + _STARVED_SECONDS, exit=True, file=self._file)
        while not self._stop.wait(self._poll_seconds):
            now = time.monotonic()
            self._paused += max(0.0, now - looked - 2 * self._poll_seconds)  # stopped (Ctrl-Z, a suspended machine): nobody hangs
            looked = now
            current = self._current
            left = longest if current is None else current[1] - self._clock()
            if current is not None and left < 0:
                self._end(current[0])
            faulthandler.dump_traceback_later(left + _STARVED_SECONDS, exit=True, file=self._file)

    def _end(self, name: str) -> None:
        assert self._file is not None
        faulthandler.dump_traceback_later(_REPORT_SECONDS + _STARVED_SECONDS, exit=True, file=self._file)
        message = f"hang: {name} did not end within {self._budgets[name]:g} seconds; the stacks of all threads are in {self.path}"
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
        self._file.flush()
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        os.write(2, f"\njaxtune: {message}\n".encode())
        if self._report is not None:
            teller = threading.Thread(target=self._report, args=(message,), daemon=True)  # it may wait for a lock of the hung thread
            teller.start()
            teller.join(_REPORT_SECONDS)
        os._exit(HangError.exit_code)
