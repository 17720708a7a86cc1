"""SIGTERM and Ctrl-C: the first one finishes the step and saves, the second one stops at once.

Signals are received by a thread through the wake-up pipe, because a Python handler waits for the main thread, which may sit
in a compilation for minutes; then a second Ctrl-C would do nothing. Under `jax.distributed` SIGTERM belongs to JAX, which lets
all hosts stop after the same step; a Python handler would disable that silently, so none is installed there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax

from jaxtune.core.errors import Interrupted, JaxtuneError, Preempted

_LOG = logging.getLogger(__name__)
_ERRORS: dict[int, type[JaxtuneError]] = {signal.SIGTERM: Preempted, signal.SIGINT: Interrupted}
_TOGETHER_SECONDS = 0.3  # launchers and process groups deliver one request twice
_CATCHING: list[Signals] = []
_FORK_WATCHED: list[bool] = []


class Signals:
    """A context manager around everything that may take long; ask `requested` after every step.

    On one process SIGTERM and SIGINT are caught. On several, SIGTERM is seen through JAX's preemption service and Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._heard_at: float | None = None  # by the thread, which alone decides what is a second signal
        self._old: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._old_wakeup = -1
        self._thread: threading.Thread | None = None
        self._distributed = False

    def requested(self, step: int) -> type[JaxtuneError] | None:
        """`Preempted` or `Interrupted` when the run shall save and end. On several processes every one asks at every step."""
        if self._distributed:
            from jax.experimental import multihost_utils

            return Preempted if multihost_utils.reached_preemption_sync_point(step) else None
        return None if self._first is None else _ERRORS[self._first]

    def __enter__(self) -> Signals:
        self._distributed = jax.distributed.is_initialized()
        if self._distributed:
            if callable(signal.getsignal(signal.SIGTERM)):
                _LOG.warning("a Python handler for SIGTERM is installed: JAX cannot see preemptions, the run would end without saving")
        elif threading.current_thread() is not threading.main_thread():
            _LOG.warning("not in the main thread: SIGTERM and Ctrl-C cannot be caught, the run would end without saving")
        else:
            self._install()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is None:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        reader, writer = self._pipe
        self._pipe = None
        _CATCHING.remove(self)
        os.close(writer)  # ends the thread
        if self._thread is not None:
            self._thread.join()
        os.close(reader)

    def _install(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._pipe = reader, writer
        self._thread = threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True)
        self._thread.start()
        self._old_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _ERRORS:
            self._old[number] = signal.signal(number, self._note)
        if not _FORK_WATCHED:
            _FORK_WATCHED.append(True)
            os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_through, after_in_child=_forget_in_child)
        _CATCHING.append(self)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The ordinary handler, run by the main thread when it can; keeps the request even if somebody took the wake-up pipe."""
        if self._first is None:
            self._first = number

    def _listen(self, reader: int) -> None:
        while data := os.read(reader, 64):
            for number in data:
                if number in _ERRORS:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._heard_at is None:
            self._note(number, None)
            self._heard_at = now
            _LOG.warning("%s: finishing the step and saving; a second one stops at once", name)
        elif now - self._heard_at > _TOGETHER_SECONDS:
            os.write(2, f"\njaxtune: second {name}, stopping at once; resume goes on from the last durable checkpoint\n".encode())
            os._exit(_ERRORS[number].exit_code)


def _hold_signals() -> None:
    if _CATCHING:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ERRORS)


def _let_signals_through() -> None:
    if _CATCHING:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ERRORS)


def _forget_in_child() -> None:
    """A forked child shares the pipe: a signal to it must not look like one to the run, from its first moment."""
    if _CATCHING:
        signal.set_wakeup_fd(-1)
        for number in _ERRORS:
            signal.signal(number, signal.SIG_DFL)
        _let_signals_through()
        _CATCHING.clear()
