"""The manifest of a checkpoint: every file with its size and SHA-256, written after the save has been committed.

Orbax notices missing and shortened files, but loads a flipped bit or a zeroed page as wrong weights without a word, and leaves
its small metadata files and the final rename unsynced. Both are cured here, in one pass over the files.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from jaxtune.core.files import sync_folder, write_whole

NAME = "jaxtune_manifest.json"
_FORMAT = 1
_BLOCK = 1 << 20


def exists(folder: Path) -> bool:
    return (folder / NAME).is_file()


def written_at(folder: Path) -> float:
    """When `folder` became durable, in seconds since 1970."""
    return (folder / NAME).stat().st_mtime


def write(folder: Path) -> None:
    """Makes every file and folder of `folder` durable, then records them. The manifest's presence means: this checkpoint is safe.

    Raises:
        OSError: a file could not be read, synced or written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        elif path.name != NAME and not path.name.startswith("."):  # a dot: what a killed writer of the manifest left
            size, digest = _digest(path, durable=True)
            files[path.relative_to(folder).as_posix()] = {"bytes": size, "sha256": digest}
    sync_folder(folder)
    sync_folder(folder.parent)
    write_whole(folder / NAME, json.dumps({"format": _FORMAT, "files": files}, indent=0))


def problem(folder: Path) -> str | None:
    """What is wrong with the files of `folder`, or None when all are as they were written. Sizes are compared before contents."""
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        expected = [(folder / name, name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        return f"{NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{NAME} cannot be read ({type(error).__name__}: {error})"
    try:
        for path, name, size, _ in expected:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, expected {size}"
        for path, name, _, digest in expected:
            if _digest(path)[1] != digest:
                return f"{name} has changed since it was written (SHA-256 differs)"
    except OSError as error:
        return f"{error.filename or folder} cannot be read ({error.strerror})"
    return None


def _digest(path: Path, durable: bool = False) -> tuple[int, str]:
    digest, total = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            total += len(block)
        if durable:
            os.fsync(file.fileno())
    return total, digest.hexdigest()
