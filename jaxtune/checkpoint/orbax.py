"""The only module that knows Orbax: one folder is one checkpoint of named arrays and a JSON record.

Orbax' training `Checkpointer` is not used: it reports a failed save one save late, keeps steps in its list that were never
written, and refuses or skips steps below the newest one after a rollback. The calls below answer for one folder each.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

COMMITTED = "commit_success.txt"


class LoadError(Exception):
    """A checkpoint could not be read; the text is the root cause."""


def prepare() -> None:
    """Imports Orbax (0.3 s) now and not in the first save."""
    _context()


def begin_save(folder: Path, arrays: Mapping[str, Any], record: Mapping[str, Any]) -> Any:
    """Starts a save and returns a response whose `result(timeout)` waits for it and raises what went wrong.

    `folder` appears when everything is written, never before. Arrays without elements cannot be saved.
    """
    from orbax.checkpoint import v1 as ocp

    with _context():
        return ocp.save_checkpointables_async(str(folder), {"arrays": dict(arrays), "record": dict(record)})


def read_arrays(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Any part of the saved arrays; a name asks by a ShapeDtypeStruct for a jax.Array, by `np.ndarray` for NumPy.

    Raises:
        LoadError: as it says.
    """
    return _read(folder, "arrays", dict(wanted)) if wanted else {}


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON part.

    Raises:
        LoadError: as it says.
    """
    return _read(folder, "record", None)


def _read(folder: Path, name: str, wanted: Any) -> Any:
    from orbax.checkpoint import v1 as ocp

    try:
        with _context():
            return ocp.load_checkpointables(str(folder), {name: wanted})[name]
    except Exception as error:
        why = reason(error)
    _drop_unfinished_reads()  # only now, when the error no longer holds them
    raise LoadError(why)


def _drop_unfinished_reads() -> None:
    """When one array fails, Orbax abandons its reads of the others, and each prints pages to stderr when it is collected."""
    hook: Callable[[Any], Any] = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def reason(error: BaseException) -> str:
    """The root cause in one line: Orbax hides it behind a chain of its own errors."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def everywhere(fine: bool) -> bool:
    """Whether all hosts say so."""
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(np.min(multihost_utils.process_allgather(np.int32(fine))))


def _context() -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name="record")  # or JSON would become arrays
    context.array.saving.use_compression = False  # weights shrink by 7 % for twice the CPU time
    context.array.saving.use_replica_parallel = False  # slices on the device, compiled per shape: 6.9 s for the first save on 8 CPU devices
    context.pytree.loading.partial_load = True
    return context
