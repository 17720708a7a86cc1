"""The process that a command runs in: how its C library hands out memory.

XLA allocates a step's temporaries anew every time, gigabytes of them, and by default each step gets fresh pages from the kernel. In pages of
4 KiB a step of MiniLM at 32 x 128 in bfloat16 takes 165,000 page faults (benchmarks/step_operations.py). So memory comes in pages of 2 MiB,
from one heap that is kept between steps; what happens to its largest blocks is decided while it runs, in `core/heap.py`.

The C library reads such wishes when a process starts and at no other time, so the command starts itself again, in the same process,
before anything is imported. Where an accelerator is, temporaries live there, and threads are better served by arenas of their own.
"""

from __future__ import annotations

import glob
import os
import sys

from jaxtune.core.heap import KEEPS

VARIABLE = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
COMPUTING = ("train", "resume", "evaluate", "predict", "choose", "lr-test", "search", "branch")
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def wish(words: list[str], environment: dict[str, str], platform: str, accelerated: bool) -> str | None:
    """What a command wants of the C library; None where it runs as it is. What the user chose stands."""
    if platform != "linux" or VARIABLE in environment or not words or words[0] not in COMPUTING:
        return None
    return HUGE_PAGES if accelerated and environment.get("JAX_PLATFORMS") != "cpu" else f"{HUGE_PAGES}:{KEEPS}"


def start_again() -> None:
    """Replaces the process by itself with the wish in its environment; returns where there is nothing to do."""
    accelerated = any(glob.glob(pattern) for pattern in ACCELERATORS)
    wanted = wish(sys.argv[1:], dict(os.environ), sys.platform, accelerated)
    if wanted is not None:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: wanted})
