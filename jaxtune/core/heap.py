"""How this process's C library hands out and gives back memory while a model trains on the CPU.

XLA allocates a step's temporaries anew every time, gigabytes of them. By themselves the largest blocks go back to the kernel after
every step and come as fresh pages, which have to be cleared. Kept, they cost nothing, but small blocks that live on come to lie between them:
SmolLM2's LoRA step has a peak of 5.6 GiB so, in place of 2.4, and is no quicker (2.4 s), while full fine-tuning of MiniLM at 32 x 256
spends a quarter of its time in the kernel (2.2 s a step) and takes 1.7 s and 5.1 GiB in place of 3.1 with them kept. So it is measured: where
the kernel takes much of the first steps, they are kept from then on, and what other work leaves behind is given back
(benchmarks/step_memory.py; 2026-11-24, 2 cores).
"""

from __future__ import annotations

import ctypes
import os
import resource

LARGE = 512 * 2**20  # bytes of a block that is the kernel's own affair, until `keep_large_blocks`
KEEPS = f"glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold={LARGE}:glibc.malloc.trim_threshold=1000000000000"
FIRST, LAST = 3, 6  # the steps between which the kernel's share is measured
SHARE = 0.15  # of the processor time, from which on it is too much
GROWTH = 1.2  # of the resident memory over what steps usually need: then something was left behind
TRIES = 6
PAGE = 4096
_M_MMAP_MAX = -4  # malloc.h


class Heap:
    """Watches a training. Does nothing in a process whose heap is not ours to steer (cli/process.py)."""

    def __init__(self) -> None:
        self.kept = KEEPS in os.environ.get("GLIBC_TUNABLES", "")
        self.steps = 0
        self.times: tuple[float, float] | None = None  # of the program and of the kernel, at the first step that counts
        self.usual = 0  # bytes that are resident while steps run
        self.tries = TRIES  # left before a growth is taken for what steps need
        self.settling = True  # the next step tells what is usual

    def after_step(self) -> None:
        """Gives back what is free where the process has grown, unless giving back has not helped several times."""
        if not self.kept:
            return
        self.steps += 1
        if self.steps == FIRST:
            self.times = processor_seconds()
        elif self.steps == LAST and self.times is not None:
            program, kernel = (now - before for now, before in zip(processor_seconds(), self.times, strict=True))
            if kernel > SHARE * (program + kernel):
                keep_large_blocks()
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
            self.times = None  # it is not the steps' own
            give_back()


def give_back() -> None:
    """Returns every free page of the heap to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def keep_large_blocks() -> None:
    """From now on blocks of any size stay in the heap when they are freed."""
    ctypes.CDLL(None).mallopt(_M_MMAP_MAX, 0)


def processor_seconds() -> tuple[float, float]:
    """(in the program, in the kernel), of all threads so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE
