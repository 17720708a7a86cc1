"""Gives memory that the C library keeps back to the system, at the right moments.

A process whose heap is kept between steps (cli/process.py says why) saves the page faults of every step, but what compiling, evaluating and
the first steps leave behind lies between living blocks: MiniLM at 32 x 256 grew from 3.2 to 8.9 GiB. Given back when that happens, it
settles at 3.7 GiB after a peak of about 5 (benchmarks/step_memory.py).
"""

from __future__ import annotations

import ctypes
import os

KEEPS = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000"
GROWTH = 1.2  # of the resident memory over what steps usually need: then something was left behind
TRIES = 6
PAGE = 4096


class Heap:
    """Watches a training. Does nothing in a process whose heap is not kept."""

    def __init__(self) -> None:
        self.kept = KEEPS in os.environ.get("GLIBC_TUNABLES", "")
        self.usual = 0  # bytes that are resident while steps run
        self.tries = TRIES  # left before a growth is taken for what steps need
        self.settling = True  # the next step tells what is usual

    def after_step(self) -> None:
        """Gives back what is free where the process has grown, unless giving back has not helped several times."""
        if not self.kept:
            return
        now = resident_bytes()
        if self.settling or now <= self.usual * GROWTH:
            self.usual, self.settling = max(now, self.usual), False
        elif self.tries:
            self.tries, self.settling = self.tries - 1, True
            give_back()
        else:
            self.usual, self.tries = now, TRIES

    def after_other_work(self) -> None:
        """Gives back what an evaluation, a save or a compilation has left."""
        if self.kept:
            give_back()


def give_back() -> None:
    """Returns every free page of the heap to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE
