"""The process that a command runs in: large blocks of memory in huge pages.

XLA allocates a step's temporaries anew every time. In pages of 4 KiB a step of MiniLM at 32 x 128 in bfloat16 takes 165,000 page faults and
0.84 s on 2 cores, in pages of 2 MiB 360 faults and 0.73 s (benchmarks/step_operations.py). The C library reads that wish when a process
starts and at no other time, so the command starts itself again, in the same process, before anything is imported.
"""

from __future__ import annotations

import os
import sys

VARIABLE, WISH = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
COMPUTING = ("train", "resume", "evaluate", "predict", "branch")


def wants_huge_pages(words: list[str], environment: dict[str, str], platform: str) -> bool:
    """Whether the command should be started again; what the user chose for the C library stands."""
    return platform == "linux" and VARIABLE not in environment and bool(words) and words[0] in COMPUTING


def use_huge_pages() -> None:
    """Replaces the process by itself with the wish in its environment; returns where there is nothing to do."""
    if wants_huge_pages(sys.argv[1:], dict(os.environ), sys.platform):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: WISH})
