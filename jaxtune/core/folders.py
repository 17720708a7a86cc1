"""Where jaxtune keeps what can be made again: compiled programs, tokenized data, copies from buckets."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """`~/.cache/jaxtune/<name>` (not made yet); the environment variables JAXTUNE_CACHE and XDG_CACHE_HOME move it."""
    moved, shared = os.environ.get("JAXTUNE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(moved) if moved else (Path(shared) if shared else Path.home() / ".cache") / "jaxtune"
    return root / name
