"""The checkpoints of a run: saved in the background, proven by a manifest, restored from the newest that is whole.

This is the only module that knows Orbax. One step is one Orbax checkpoint in a folder named by its number; which steps
stay, which are trusted and what happens after a failure is decided here, because Orbax reports a failed save one save late
and loads a flipped bit without a word.

    50/                 a checkpoint; it counts as durable once it holds its manifest
    60.orbax-...tmp/    being written (or left by a kill; removed at the next start)
    archive/40/         taken back by a rollback          quarantine/30-<time>/   damaged, kept for inspection
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxtune.checkpoint import manifest
from jaxtune.checkpoint.arrays import check, count_bytes, describe, named_leaves, with_leaves
from jaxtune.core.errors import DiskError, ModelError, NoCheckpointError
from jaxtune.core.files import plain, sync_folder
from jaxtune.parallel import hosts

_LOG = logging.getLogger(__name__)
_ROOM = 2.2  # free space asked for before a save, in multiples of the state (field/reliability.md, disk full)
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleting")


@dataclass(frozen=True)
class Durable:
    """A checkpoint that would survive a power cut now."""

    step: int
    time: float  # seconds since 1970


@dataclass(frozen=True)
class Restored:
    step: int
    arrays: Any  # the tree that was asked for
    meta: dict[str, Any]
    rejected: tuple[tuple[int, str], ...] = ()  # (step, why) of newer checkpoints that were found damaged


@dataclass(frozen=True)
class _Job:
    step: int
    arrays: dict[str, Any]
    record: dict[str, Any]


class Store:
    """`keep_latest` newest checkpoints and the best one are kept. `best` says whether a higher metric is better.

    `read_only` neither cleans up nor moves anything, so a run can be read while another process trains it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_latest: int = 2,
        best: Literal["max", "min"] | None = None,
        timeout_seconds: float = 1200.0,
        read_only: bool = False,
    ):
        if keep_latest < 1:
            raise ValueError("keep_latest must be at least 1")
        self.folder = Path(folder).absolute()
        self.keep_latest, self.best, self.timeout_seconds, self.read_only = keep_latest, best, timeout_seconds, read_only
        self.stall_seconds = 0.0  # how long the last save() held its caller up
        self._thread: threading.Thread | None = None
        self._failure: DiskError | None = None
        self._records: dict[int, dict[str, Any]] = {}
        if not read_only and hosts.is_primary():
            self._tidy()
        hosts.agree(0)  # nobody looks before the tidying is done
        steps = self.steps()
        self.last_durable = Durable(steps[-1], (self.folder / str(steps[-1]) / manifest.NAME).stat().st_mtime) if steps else None

    # -- what is there ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The durable steps, ascending."""
        return [step for step in self._committed() if manifest.exists(self.folder / str(step))]

    @property
    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """The durable step with the best finite metric, the earlier of equals; None without one."""
        sign = {"max": 1.0, "min": -1.0}.get(self.best or "")
        if sign is None:
            return None
        scores = [(sign * metric, -step) for step in self.steps() if (metric := self.metric(step)) is not None]
        return -max(scores)[1] if scores else None

    def metric(self, step: int) -> float | None:
        """The metric that step was saved with, None when there was none or it was not finite."""
        value = self._record(step)["metric"]
        return value if isinstance(value, float) and math.isfinite(value) else None

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON part of a step."""
        return self._record(step)["meta"]

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(
        self, step: int, arrays: Any, meta: Mapping[str, Any], metric: float | None = None, *, wait: bool = False, replace: bool = False
    ) -> bool:
        """Starts a save and returns; False when that step is already there (unless `replace`).

        The arrays may be donated to the next step at once: they are on the host when this returns, or (on the CPU) held so that
        the donating step writes elsewhere. Called on every process. `meta` must be JSON. Waits for the save before, if it still runs.

        Raises:
            DiskError: too little room, or the save before this one failed.
        """
        began = time.monotonic()
        if self.read_only:
            raise ValueError(f"{self.folder} was opened for reading only")
        self.wait()
        if not replace and (self.folder / str(step)).exists():
            return False
        leaves = named_leaves(arrays)
        record = {"step": step, "metric": None if metric is None else float(metric), "meta": meta, "format": 1}
        record["arrays"] = {name: describe(leaf) for name, leaf in leaves.items()}
        job = _Job(step, {name: leaf for name, leaf in leaves.items() if count_bytes(leaf)}, json.loads(json.dumps(record)))
        self._make_room(step, sum(map(count_bytes, leaves.values())))
        if hosts.is_primary():
            self._set_aside(step)
        try:
            response = self._start(job)
        except OSError as error:
            self._bring_back(step)
            raise self._disk_error(step, error) from error
        self._thread = threading.Thread(target=self._finish, args=(job, response), name=f"save-{step}")
        self._thread.start()
        self.stall_seconds = time.monotonic() - began
        if wait:
            self.wait()
        return True

    def poll(self) -> None:
        """Cheap; call it every step.

        Raises:
            DiskError: a save in the background has failed (raised once).
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Until nothing is being saved.

        Raises:
            DiskError: as `poll`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def close(self) -> None:
        self.wait()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.close()
        except DiskError as failure:
            if error is None:
                raise
            _LOG.error("%s", failure)

    def delete_after(self, step: int) -> list[int]:
        """For a rollback: moves later steps to `archive/` (which then holds this rollback's steps alone); the steps moved."""
        self.wait()
        later = [s for s in self._committed() if s > step]
        if hosts.is_primary() and later:
            archive = self.folder / "archive"
            self._remove(archive)
            archive.mkdir()
            for s in later:
                (self.folder / str(s)).rename(archive / str(s))
            sync_folder(self.folder)
        for s in later:
            self._records.pop(s, None)
        hosts.agree(0)
        return later

    # -- restoring ----------------------------------------------------------------------------------------------------

    def restore(self, step: int | None, abstract: Any, *, complete: bool = False) -> Restored:
        """Loads a step, or with None the newest one that is whole, onto the shardings of `abstract` (ShapeDtypeStructs).

        `abstract` may be a part of what was saved (the parameters alone); `complete` makes that a mismatch. Damaged steps are moved to `quarantine/`.

        Raises:
            NoCheckpointError: nothing usable is left.
            ModelError: names, shapes or dtypes differ from what was saved (all of them are listed).
        """
        self.wait()
        wanted = named_leaves(abstract)
        missing = [name for name, leaf in wanted.items() if getattr(leaf, "sharding", None) is None]
        if missing:
            raise ValueError(f"these abstract arrays have no sharding: {', '.join(missing)}")
        rejected: list[tuple[int, str]] = []
        for candidate in self._candidates(step):
            folder = self.folder / str(candidate)
            proven = bool(hosts.agree(int(manifest.exists(folder))))
            why = self._damage(candidate, proven)
            if why is None:
                try:
                    leaves, record = self._load(candidate, wanted, complete, everything=not proven)
                    loaded = True
                except ModelError:
                    raise
                except Exception as error:
                    why, loaded = _reason(error), False
                    if proven or "RESOURCE_EXHAUSTED" in why or isinstance(error, MemoryError):
                        raise NoCheckpointError(f"{folder} is whole, but could not be loaded: {why}") from error
                if _everywhere(loaded):
                    if not proven and not self.read_only and hosts.is_primary():
                        manifest.write(folder)
                    for bad, reason in rejected:
                        _LOG.warning("checkpoint of step %d was rejected (%s); using step %d, %d steps earlier", bad, reason, candidate, bad - candidate)
                    return Restored(candidate, with_leaves(abstract, leaves), record["meta"], tuple(rejected))
            rejected.append((candidate, why or "another host could not load it"))
            self._quarantine(*rejected[-1])
        tried = "; ".join(f"step {bad}: {why}" for bad, why in rejected) or (
            f"there is no step {step} (there are: {self._listing()})" if step is not None else "no step was ever completed"
        )
        raise NoCheckpointError(f"no usable checkpoint in {self.folder}: {tried}")

    def read_arrays(self, step: int, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays of a durable step whose names begin with `prefix`, as NumPy on the host (PRNG keys as their numbers).

        Raises:
            NoCheckpointError: the step is not there or damaged.
        """
        self.wait()
        if step not in self.steps():
            raise NoCheckpointError(f"there is no step {step} in {self.folder} (there are: {self._listing()})")
        why = manifest.problem(self.folder / str(step))
        if why is not None:
            raise NoCheckpointError(f"step {step} in {self.folder} is damaged: {why}")
        saved = self._record(step)["arrays"]
        wanted = {name: _on_host(entry) for name, entry in saved.items() if name.startswith(prefix)}
        return {name: np.asarray(leaf) for name, leaf in self._read(step, wanted).items()}

    # -- inside: Orbax ------------------------------------------------------------------------------------------------

    def _start(self, job: _Job) -> Any:
        from orbax.checkpoint import v1 as ocp

        with _context(self.timeout_seconds):
            return ocp.save_checkpointables_async(self.folder / str(job.step), {"arrays": job.arrays, "record": job.record})

    def _read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp

        empty = {name: leaf for name, leaf in wanted.items() if not count_bytes(leaf)}  # Orbax stores no array without elements
        full = {name: leaf for name, leaf in wanted.items() if name not in empty}
        with _context(self.timeout_seconds):
            leaves = ocp.load_checkpointables(self.folder / str(step), {"arrays": full})["arrays"] if full else {}
        return leaves | {name: jax.device_put(np.zeros(leaf.shape, leaf.dtype), getattr(leaf, "sharding", None)) for name, leaf in empty.items()}

    def _record(self, step: int) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp

        if step not in self._records:
            with _context(self.timeout_seconds):
                self._records[step] = ocp.load_checkpointables(self.folder / str(step), {"record": None})["record"]
        return self._records[step]

    # -- inside: the background ---------------------------------------------------------------------------------------

    def _finish(self, job: _Job, response: Any) -> None:
        """Runs in a thread: waits for Orbax, proves the step, then lets go of old ones. One more try after a failure."""
        try:
            try:
                self._complete(job, response)
            except Exception as error:
                alone = jax.process_count() == 1 and not any(getattr(leaf, "is_deleted", bool)() for leaf in job.arrays.values())
                if not alone or isinstance(error, TimeoutError):
                    raise
                _LOG.warning("saving step %d failed (%s); making room and trying once more", job.step, _reason(error))
                self._tidy()
                self._prune(keep_latest=1, shed=True)
                self._complete(job, self._start(job))
        except Exception as error:
            if hosts.is_primary():
                self._tidy()
                self._bring_back(job.step)
            self._failure = self._disk_error(job.step, error)

    def _complete(self, job: _Job, response: Any) -> None:
        response.result(timeout=self.timeout_seconds)
        if hosts.is_primary():
            manifest.write(self.folder / str(job.step))
        self._records[job.step] = job.record
        self.last_durable = Durable(job.step, time.time())
        if hosts.is_primary():
            self._remove(self.folder / f"{job.step}.replaced")
            self._prune(self.keep_latest)

    # -- inside: the folder -------------------------------------------------------------------------------------------

    def _committed(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal() and path.is_dir())

    def _listing(self) -> str:
        best = self.best_step
        return ", ".join(f"{step} (best)" if step == best else str(step) for step in self.steps()) or "none"

    def _tidy(self) -> None:
        """Removes what a killed or failed save left, and brings back a step whose replacement was never finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in list(self.folder.iterdir()):
            if any(mark in path.name for mark in _UNFINISHED):
                self._remove(path)
            elif path.suffix == ".replaced":
                self._bring_back(int(path.stem)) if not manifest.exists(self.folder / path.stem) else self._remove(path)

    def _set_aside(self, step: int) -> None:
        if (self.folder / str(step)).exists():
            (self.folder / str(step)).rename(self.folder / f"{step}.replaced")
            self._records.pop(step, None)

    def _bring_back(self, step: int) -> None:
        old = self.folder / f"{step}.replaced"
        if old.exists():
            self._remove(self.folder / str(step))
            old.rename(self.folder / str(step))

    def _remove(self, path: Path) -> None:
        """Renamed first: a kill in the middle must not leave half a checkpoint under its number."""
        if path.exists():
            if path.name.isdecimal():
                path = path.rename(path.with_name(path.name + ".deleting"))
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self, keep_latest: int, shed: bool = False) -> None:
        durable, best = self.steps(), self.best_step
        keep = {*durable[-keep_latest:], *([best] if best is not None else [])}
        for step in self._committed():
            if durable and step < durable[-1] and step not in keep:
                self._remove(self.folder / str(step))
                self._records.pop(step, None)
        if shed:
            self._remove(self.folder / "archive")

    def _make_room(self, step: int, state_bytes: int) -> None:
        needed, enough = int(_ROOM * state_bytes) + (1 << 20), True
        if hosts.is_primary():
            if shutil.disk_usage(self.folder).free < needed:
                self._prune(keep_latest=1, shed=True)
            enough = shutil.disk_usage(self.folder).free >= needed
        if not hosts.agree(int(enough)):
            raise self._disk_error(step, None, needed)

    def _disk_error(self, step: int, error: BaseException | None, needed: int = 0) -> DiskError:
        cause = _reason(error) if error else f"{needed / 2**20:.0f} MiB of free space are needed"
        free, spare = shutil.disk_usage(self.folder).free / 2**20, manifest.size(self.folder / "quarantine") / 2**20
        return DiskError(
            f"the checkpoint of step {step} was not saved: {cause}\n"
            f"  on disk: steps {self._listing()} in {self.folder}; {free:.0f} MiB are free{f', {spare:.0f} MiB lie in quarantine/' if spare else ''}\n"
            "  free some space or move the run folder, then resume: it goes on from the newest step above"
        )

    def _candidates(self, step: int | None) -> list[int]:
        """Newest first, the same on every host."""
        found = self._committed()[::-1] if step is None else [s for s in self._committed() if s == step]
        count = int(hosts.agree(len(found)))
        return [int(s) for s in np.atleast_1d(hosts.agree(np.asarray(found[:count] + [0] * (count - len(found)), np.int32)))]

    def _damage(self, step: int, proven: bool) -> str | None:
        """Why the files of a step cannot be trusted; without a manifest (killed right after the commit) loading will tell."""
        why = None
        if hosts.is_primary():
            folder = self.folder / str(step)
            if proven:
                why = manifest.problem(folder)
            elif not (folder / "commit_success.txt").is_file():
                why = "it was never completed"
        return why if hosts.agree(int(why is None)) == 1 else why or "rejected by the first host"

    def _load(self, step: int, wanted: Mapping[str, Any], complete: bool, everything: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        record = self._record(step)
        check(record["arrays"], wanted, f"{self.folder / str(step)}", complete)
        rest = {name: _on_host(entry) for name, entry in record["arrays"].items() if everything and name not in wanted}
        leaves = self._read(step, {**rest, **wanted})
        return {name: leaves[name] for name in wanted}, record

    def _quarantine(self, step: int, why: str) -> None:
        _LOG.warning("checkpoint of step %d in %s is damaged: %s", step, self.folder, why)
        self._records.pop(step, None)
        if self.read_only or not hosts.is_primary():
            return
        try:
            place = self.folder / "quarantine" / f"{step}-{time.time_ns() // 1_000_000}"
            place.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(place)
            place.with_name(place.name + ".txt").write_text(why + "\n", encoding="utf-8")
        except OSError as error:
            _LOG.warning("step %d could not be moved to quarantine/ (%s)", step, error)


def _context(timeout_seconds: float) -> Any:
    """How Orbax is used: the record as plain JSON, parts readable, no compression (random weights shrink by 7 % and cost twice the CPU)."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry()
    context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name="record")
    context.array.saving.use_compression = False
    context.pytree.loading.partial_load = True
    context.asynchronous.timeout_secs = int(timeout_seconds)
    return context


def _on_host(entry: Mapping[str, Any]) -> np.ndarray:
    """Asks Orbax for NumPy. A PRNG key is stored as its numbers, whose shape Orbax knows itself."""
    kind = str(entry["dtype"])
    return np.broadcast_to(np.zeros((), np.uint32 if kind.startswith("key<") else kind), entry["shape"])


def _everywhere(fine: bool) -> bool:
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(np.min(multihost_utils.process_allgather(np.int32(fine))))


def _reason(error: BaseException) -> str:
    """The root cause: Orbax hides it behind a chain of its own errors."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {str(error)[:400]}"
