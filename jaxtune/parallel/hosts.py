"""Starting up, once per process: the only place that sets global JAX flags, and how hosts agree and who speaks."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path
from typing import Any

import jax

from jaxtune.core.folders import cache_folder

_STARTED = False
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc


def start(compile_cache: Path | None = None) -> None:
    """Sets the flags every computing command needs; may be called again without effect.

    The persistent compilation cache is on: a second run of the same experiment starts in seconds.
    """
    global _STARTED
    if _STARTED:
        return
    _STARTED = True
    folder = compile_cache or cache_folder("compiled")
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """On a Linux CPU: what a step frees stays with the process for the next step, in one arena.

    XLA allocates a step's temporaries anew every time; given back to the system between steps, their pages fault in again (191,000
    faults a step of MiniLM at 16 x 256, a step of 1.08 to 1.92 s against 0.75 to 0.80 s with this; benchmarks/step_profile.py).
    """
    if sys.platform != "linux" or jax.default_backend() != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has another allocator
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            mallopt(option, value)


def is_primary() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """One line on stderr, from one host."""
    if is_primary():
        print(message, file=sys.stderr, flush=True)


def agree(value: Any) -> Any:
    """The primary host's value on every host (numbers and small arrays)."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)
