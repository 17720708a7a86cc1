"""Starting up, once per process: the only place that sets global JAX flags, and how hosts agree and who speaks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.core.folders import cache_folder

_STARTED = False


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
