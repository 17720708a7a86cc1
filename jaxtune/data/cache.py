"""Tokenized examples on disk, found again by fingerprint and memory-mapped.

An entry is a folder of .npy files that appears in one rename, so a process that is killed, or two that build the same entry,
leave nothing half done; a manifest with sizes and SHA-256 lets a damaged entry be noticed and built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import DiskError
from jaxtune.data.examples import Examples, Ragged

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the files or the meaning of a column change: older entries are then not found
MANIFEST = "manifest.json"
ABANDONED_SECONDS = 24 * 3600


def fingerprint(parts: Mapping[str, Any]) -> str:
    """The key of an entry: SHA-256 over everything that decides its content (source, transforms, tokenizer, options), as JSON."""
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def load_or_build(folder: Path | None, key: str, build: Callable[[], Examples]) -> tuple[Examples, bool]:
    """The examples stored under `key`, memory-mapped, and whether they were there already.

    `folder` is usually `cache_folder("data")`; None stores nothing. All columns that `build` returns must be arrays or `Ragged`.

    Raises:
        DiskError: the folder cannot be written.
    """
    if folder is None:
        return build(), False
    entry = folder / key
    found = _load(entry)
    if found is not None:
        return found, True
    examples = build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
        try:
            _write(building, examples)
            _publish(building, entry)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise DiskError(
            f"cannot write the tokenized data to {folder}: {error.strerror or error}; "
            "free some space or set JAXTUNE_CACHE to a folder that can be written"
        ) from error
    stored = _load(entry)
    if stored is None:
        raise DiskError(f"{entry} does not hold what was just written to it; check the disk, or set JAXTUNE_CACHE to another one")
    return stored, False


def _publish(building: Path, entry: Path) -> None:
    """Moves a finished entry into place. Where another process was first, its entry stays; a damaged one makes room."""
    try:
        building.rename(entry)
    except OSError:
        if not entry.exists():
            raise
        if _load(entry) is None:
            aside = entry.with_name(f".building-{uuid.uuid4().hex}")
            entry.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            building.rename(entry)


def _files(examples: Examples) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    files: dict[str, np.ndarray] = {}
    kinds = {}
    for name, column in examples.columns.items():
        if isinstance(column, Ragged):
            kinds[name] = "ragged"
            files[f"{name}.flat.npy"], files[f"{name}.offsets.npy"] = column.flat, column.offsets
        elif isinstance(column, np.ndarray):
            kinds[name] = "array"
            files[f"{name}.npy"] = column
        else:
            raise TypeError(f'column "{name}" is a {type(column).__name__}: only arrays and Ragged columns can be cached')
    files |= {f"fact.{name}.npy": fact for name, fact in examples.facts.items()}
    if examples.lengths is not None:
        files["lengths.npy"] = np.asarray(examples.lengths)
    return files, {"columns": kinds, "facts": list(examples.facts), "lengths": examples.lengths is not None}


def _write(folder: Path, examples: Examples) -> None:
    if len(examples.ids) != len(next(iter(examples.columns.values()))):
        raise ValueError("a view of some rows cannot be cached: cache the whole data, then take the subset")
    files, contents = _files(examples)
    contents["files"] = {}
    for name, array in files.items():
        with (folder / name).open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        contents["files"][name] = _seal(folder / name)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(contents, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _load(entry: Path) -> Examples | None:
    """None when there is no entry, or a damaged one, which is said in the log."""
    if not entry.is_dir():
        return None
    try:
        contents = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name, seal in contents["files"].items() if not (entry / name).is_file() or _seal(entry / name) != seal]
        if not damaged:
            return _read(entry, contents)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damaged = [f"{MANIFEST} ({type(error).__name__}: {error})"]
    log.warning("tokenized data in %s are damaged (%s): building them again", entry, ", ".join(damaged))
    return None


def _read(entry: Path, contents: Mapping[str, Any]) -> Examples:
    def array(name: str) -> np.ndarray:
        return np.load(entry / name, mmap_mode="r", allow_pickle=False)

    columns: dict[str, Any] = {}
    for name, kind in contents["columns"].items():
        columns[name] = Ragged(array(f"{name}.flat.npy"), array(f"{name}.offsets.npy")) if kind == "ragged" else array(f"{name}.npy")
    lengths = array("lengths.npy") if contents["lengths"] else None
    return Examples(columns, lengths, {name: array(f"fact.{name}.npy") for name in contents["facts"]})


def _remove_abandoned(folder: Path) -> None:
    """What a killed process left behind a day ago or more."""
    for path in folder.glob(".building-*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue
