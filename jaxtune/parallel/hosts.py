"""Starting up, once per process: the only place that sets global JAX flags, and how hosts agree and who speaks."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.core.folders import cache_folder

_STARTED = False
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc
SMALL_MACHINE = 12 << 30  # bytes
SPARE_MIB = (256, 64, 64, 64, 64)


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
    """On a Linux CPU: what a step frees stays with the process for the next step, in huge pages.

    XLA allocates a step's temporaries anew every time; given back to the system between steps, their pages fault in again. A step of
    MiniLM at 32 x 128 in bfloat16: 165,000 faults and 0.84 s without this, none and 0.63 s with it (benchmarks/step_operations.py).
    It costs memory, two to four times a step's temporaries, so small machines are left alone. It must come before the backend's
    threads exist, because each takes the arena that there is when it first allocates.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if sys.platform == "linux" else 0
    if total < SMALL_MACHINE or not expects_cpu():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library has another allocator
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.argtypes = [ctypes.c_void_p]
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            library.mallopt(option, value)
        # the heap is grown once, untouched, so that all that will lie in it can be asked to lie in huge pages
        room = min(total // 3, 8 << 30)
        block = library.malloc(room)
        if block:
            start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
            library.madvise(start, (block + room - start) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)
            library.free(block)
        # small pieces shall be cut from these, not from the block that the next step wants whole; what parts them stays
        spare = [(library.malloc(size << 20), library.malloc(mmap.PAGESIZE)) for size in SPARE_MIB]
        for piece, _ in spare:
            library.free(piece)


def expects_cpu() -> bool:
    """Whether computations will run on the CPU, without starting a backend to find out."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    return not any(next(Path("/dev").glob(pattern), None) for pattern in ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*", "kfd"))


def is_primary() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """One line on stderr, from one host."""
    if is_primary():
        print(message, file=sys.stderr, flush=True)


def share(text: str) -> str:
    """The primary host's text on every host."""
    if jax.process_count() == 1:
        return text
    raw = np.frombuffer(text.encode(), np.uint8)
    room = int(agree(np.int32(len(raw))))
    return agree(np.resize(raw, room) if len(raw) else np.zeros(room, np.uint8)).tobytes().decode()


def agree(value: Any) -> Any:
    """The primary host's value on every host (numbers and small arrays)."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(value)
