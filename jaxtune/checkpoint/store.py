"""The checkpoints of a run: saved in the background, proven by a manifest, restored from the newest that is whole.

Which steps stay, which are trusted and what happens after a failure is decided here and not left to Orbax, which reports a
failed save one save late and loads a flipped bit without a word.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxtune.checkpoint import manifest, orbax
from jaxtune.checkpoint.arrays import check, count_bytes, describe, named_leaves, with_leaves
from jaxtune.checkpoint.folder import Durable, StepFolder
from jaxtune.core.errors import DiskError, NoCheckpointError
from jaxtune.parallel import hosts

_LOG = logging.getLogger(__name__)
_ROOM = 2.2  # free space asked for before a save, in multiples of the state


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
    record: dict[str, Any]  # step, metric, meta, and what each array is: saved beside the arrays as JSON


class Store:
    """`keep_latest` newest checkpoints and the best one are kept. `best` says whether a higher metric is better.

    `read_only` neither cleans up nor moves anything, so a run can be read while another process trains it.
    On several hosts every method that saves, restores or deletes is called on all of them; the first one manages the files.
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
        self.folder = StepFolder(folder)
        self.keep_latest, self.best, self.timeout_seconds, self.read_only = keep_latest, best, timeout_seconds, read_only
        self.stall_seconds = 0.0  # how long the last save() held its caller up
        self._thread: threading.Thread | None = None
        self._failure: DiskError | None = None
        self._records: dict[int, dict[str, Any]] = {}
        if not read_only and hosts.is_primary():
            self.folder.tidy()
        hosts.agree(0)  # nobody looks before the tidying is done
        if not read_only:
            orbax.prepare()
        self.last_durable = self.folder.newest()

    # What is there

    def steps(self) -> list[int]:
        """The durable steps, ascending."""
        return self.folder.durable()

    @property
    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore, not even a step whose proof a kill prevented."""
        return not self.folder.committed()

    @property
    def best_step(self) -> int | None:
        """The durable step with the best finite metric, the earlier of equals; None without one."""
        if self.best is None:
            return None
        sign = 1.0 if self.best == "max" else -1.0
        scores = [(sign * metric, -step) for step in self.steps() if (metric := self.metric(step)) is not None]
        return -max(scores)[1] if scores else None

    def metric(self, step: int) -> float | None:
        """The metric that step was saved with; None when there was none, it was not finite, or the record cannot be read."""
        try:
            value = self._record(step)["metric"]
        except (orbax.LoadError, KeyError, TypeError) as error:
            _LOG.warning("the record of step %d in %s cannot be read: %s", step, self.folder, error)
            return None
        return value if isinstance(value, float) and math.isfinite(value) else None

    def arrays(self, step: int) -> dict[str, dict[str, Any]]:
        """What a step holds: name -> {"shape", "dtype"}; the parts of a name are joined by "/". Raises as `meta`."""
        return self._part(step, "arrays")

    def meta(self, step: int) -> dict[str, Any]:
        """What a step was saved with.

        Raises:
            NoCheckpointError: the step is not there or damaged.
        """
        return self._part(step, "meta")

    # Saving

    def save(
        self, step: int, arrays: Any, meta: Mapping[str, Any], metric: float | None = None, *, wait: bool = False, replace: bool = False
    ) -> bool:
        """Starts a save and returns; False when that step is already there (unless `replace`). `meta` must be JSON.

        The arrays may be donated to the next step at once: accelerators have copied them to the host when this returns, and on
        the CPU they are held, so that a step they are donated to writes elsewhere. Waits for the save before, if it still runs.

        Raises:
            DiskError: too little room, or the save before this one failed.
        """
        began = time.monotonic()
        if self.read_only:
            raise ValueError(f"{self.folder} was opened for reading only")
        self.wait()
        if not replace and self.folder.of(step).exists():
            return False
        leaves = named_leaves(arrays)
        record = {"format": 1, "step": step, "metric": None if metric is None else float(metric), "meta": dict(meta)}
        record["arrays"] = {name: describe(leaf) for name, leaf in leaves.items()}
        job = _Job(step, {name: leaf for name, leaf in leaves.items() if count_bytes(leaf)}, json.loads(json.dumps(record)))
        self._make_room(step, sum(map(count_bytes, leaves.values())))
        try:
            response = self._start(job)
        except OSError as error:
            raise self._given_up(step, error) from error
        self._thread = threading.Thread(target=self._finish, args=(job, response), name=f"save-{step}")
        self._thread.start()
        self.stall_seconds = time.monotonic() - began
        if wait:
            self.wait()
        return True

    def poll(self) -> None:
        """Costs nothing; call it every step.

        Raises:
            DiskError: a save in the background has failed (raised once).
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Until nothing is being saved, on any host.

        Raises:
            DiskError: as `poll`.
        """
        if self._join() and not orbax.everywhere(self._failure is None):
            self._failure = self._failure or DiskError("another host could not save; its log says why")
        self.poll()

    def close(self) -> None:
        self.wait()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            self.close()
        elif self._join() and self._failure is not None:  # no agreement here: the error may be this host's alone
            _LOG.error("%s", self._failure)

    def delete_after(self, step: int) -> list[int]:
        """For a rollback: moves later steps to `archive/`, which then holds this rollback's steps alone. Returns them."""
        self.wait()
        later = [s for s in self.folder.committed() if s > step]
        hosts.agree(0)  # all have looked before the first host moves
        if hosts.is_primary() and later:
            self.folder.archive(later)
        for s in later:
            self._records.pop(s, None)
        hosts.agree(0)
        self.last_durable = self.folder.newest()
        return later

    # Restoring

    def restore(self, step: int | None, abstract: Any, *, complete: bool = False) -> Restored:
        """Loads a step, or with None the newest that is whole, onto the shardings of `abstract`.

        Args:
            abstract: a tree of ShapeDtypeStructs, or a function step -> tree where it depends on the step's `meta` or `arrays`. It may
                be a part of what was saved, such as the parameters.
            complete: saved arrays that nobody asked for are a mismatch.

        Damaged steps are moved to `quarantine/`.

        Raises:
            NoCheckpointError: nothing usable is left.
            ModelError: names, shapes or dtypes differ from what was saved (all of them are listed).
        """
        self.wait()
        rejected: list[tuple[int, str]] = []
        for candidate in self._candidates(step):
            folder = self.folder.of(candidate)
            proven = bool(hosts.agree(int(manifest.exists(folder))))
            why = self._damage(candidate, proven)
            if why is None:
                tree, failure = None, None
                try:
                    tree = self._load(candidate, abstract, complete, everything=not proven)
                except Exception as error:
                    failure = error
                if orbax.everywhere(failure is None):
                    if not proven and not self.read_only and hosts.is_primary():
                        manifest.write(folder)
                    return Restored(candidate, tree, self.meta(candidate), tuple(rejected))
                why = self._judge(folder, failure, proven)
            _LOG.warning("the checkpoint of step %d is damaged and left out: %s", candidate, why)
            rejected.append((candidate, why))
            self._records.pop(candidate, None)
            if not self.read_only and hosts.is_primary():
                self.folder.quarantine(candidate, why)
        if rejected:
            raise NoCheckpointError(f"no usable checkpoint in {self.folder}: " + "; ".join(f"step {bad}: {why}" for bad, why in rejected))
        found = f"there is no step {step} (there are: {self._listing()})" if step is not None else "no checkpoint was ever completed"
        raise NoCheckpointError(f"no usable checkpoint in {self.folder}: {found}")

    def read_arrays(self, step: int, prefix: str = "") -> dict[str, np.ndarray]:
        """The arrays of a durable step whose names begin with `prefix`, as NumPy on the host (PRNG keys as their numbers).

        Raises:
            NoCheckpointError: the step is not there or damaged.
        """
        self.wait()
        if step not in self.steps():
            raise NoCheckpointError(f"there is no step {step} in {self.folder} (there are: {self._listing()})")
        why = manifest.problem(self.folder.of(step))
        if why is not None:
            raise NoCheckpointError(f"step {step} in {self.folder} is damaged: {why}")
        saved = self._record(step)["arrays"]
        return self._read(step, {name: np.ndarray for name in saved if name.startswith(prefix)})

    # Inside: arrays and records

    def _start(self, job: _Job) -> Any:
        if hosts.is_primary():
            self.folder.set_aside(job.step)
        return orbax.begin_save(self.folder.of(job.step), job.arrays, job.record)

    def _read(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """`wanted` gives a ShapeDtypeStruct (-> jax.Array) or `np.ndarray` (-> NumPy) per name."""
        saved = self._record(step)["arrays"]
        empty = [name for name in wanted if 0 in saved[name]["shape"]]  # not stored
        leaves = orbax.read_arrays(self.folder.of(step), {name: leaf for name, leaf in wanted.items() if name not in empty})
        for name in empty:
            zeros = np.zeros(saved[name]["shape"], saved[name]["dtype"])
            leaves[name] = zeros if wanted[name] is np.ndarray else jax.device_put(zeros, wanted[name].sharding)
        return leaves

    def _part(self, step: int, name: str) -> dict[str, Any]:
        try:
            return self._record(step)[name]
        except orbax.LoadError as error:
            raise NoCheckpointError(f"step {step} in {self.folder} cannot be read (there are: {self._listing()}): {error}") from error

    def _record(self, step: int) -> dict[str, Any]:
        if step not in self._records:
            self._records[step] = orbax.read_record(self.folder.of(step))
        return self._records[step]

    def _load(self, step: int, abstract: Any, complete: bool, everything: bool) -> Any:
        """With `everything`, arrays that nobody asked for are read too: a checkpoint without manifest must load fully to be trusted."""
        saved = self._record(step)["arrays"]
        tree = abstract(step) if callable(abstract) else abstract
        wanted = named_leaves(tree)
        check(saved, wanted, str(self.folder.of(step)), complete)
        rest = {name: np.ndarray for name in saved if everything and name not in wanted}
        return with_leaves(tree, self._read(step, {**rest, **wanted}))

    # Inside: the background

    def _join(self) -> bool:
        """Waits for this host's part; whether there was anything to wait for."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        return thread is not None

    def _finish(self, job: _Job, response: Any) -> None:
        """Runs in a thread: waits for Orbax, proves the step, then lets go of old ones. After a failure, one more try."""
        try:
            try:
                self._complete(job, response)
            except Exception as error:
                gone = any(getattr(leaf, "is_deleted", bool)() for leaf in job.arrays.values())
                if gone or isinstance(error, TimeoutError) or jax.process_count() > 1:
                    raise
                _LOG.warning("saving step %d failed (%s); making room and trying once more", job.step, orbax.reason(error))
                self.folder.tidy()
                self._prune(keep_latest=1)
                self.folder.drop_archive()
                self._complete(job, self._start(job))
        except Exception as error:
            self._failure = self._given_up(job.step, error)

    def _complete(self, job: _Job, response: Any) -> None:
        response.result(timeout=self.timeout_seconds)
        self._records[job.step] = job.record
        if hosts.is_primary():
            manifest.write(self.folder.of(job.step))
        self.last_durable = Durable(job.step, time.time())
        if hosts.is_primary():
            self.folder.settle(job.step)
            self._prune(self.keep_latest)

    def _given_up(self, step: int, error: BaseException) -> DiskError:
        if hosts.is_primary():
            self.folder.tidy()
        return self._disk_error(step, orbax.reason(error))

    # Inside: keeping and judging

    def _prune(self, keep_latest: int) -> None:
        durable, best = self.steps(), self.best_step
        keep = {*durable[-keep_latest:], *([] if best is None else [best])}
        for step in self.folder.committed():
            if durable and step < durable[-1] and step not in keep:
                self.folder.remove(step)
                self._records.pop(step, None)

    def _make_room(self, step: int, state_bytes: int) -> None:
        needed, enough = int(_ROOM * state_bytes) + (1 << 20), True
        if hosts.is_primary():
            if self.folder.free_bytes() < needed:
                self._prune(keep_latest=1)
                self.folder.drop_archive()
            enough = self.folder.free_bytes() >= needed
        if not hosts.agree(int(enough)):
            raise self._disk_error(step, f"{needed / 2**20:.0f} MiB of free space are needed")

    def _disk_error(self, step: int, cause: str) -> DiskError:
        free, spare = self.folder.free_bytes() / 2**20, self.folder.quarantined_bytes() / 2**20
        return DiskError(
            f"the checkpoint of step {step} was not saved: {cause}\n"
            f"  {self.folder} holds steps {self._listing()}; {free:.0f} MiB are free, {spare:.0f} MiB lie in quarantine/\n"
            "  free some space or move the run folder, then resume: it goes on from the newest step above"
        )

    def _listing(self) -> str:
        best = self.best_step
        return ", ".join(f"{step} (best)" if step == best else str(step) for step in self.steps()) or "none"

    def _candidates(self, step: int | None) -> list[int]:
        """Newest first, the same on every host."""
        found = [s for s in self.folder.committed()[::-1] if step in (None, s)]
        count = int(hosts.agree(len(found)))
        if jax.process_count() == 1 or not count:
            return found[:count]
        return np.asarray(hosts.agree(np.resize(np.asarray(found or [0], np.int32), count))).tolist()

    def _damage(self, step: int, proven: bool) -> str | None:
        """Why the files of a step cannot be trusted; without a manifest (killed right after the commit) loading will tell."""
        why = None
        if hosts.is_primary():
            if proven:
                why = manifest.problem(self.folder.of(step))
            elif not (self.folder.of(step) / orbax.COMMITTED).is_file():
                why = "it was never completed"
        return why if hosts.agree(int(why is None)) else why or "rejected by the first host"

    def _judge(self, folder: Path, failure: Exception | None, proven: bool) -> str:
        """What a failure to load says: a wrong wish or a lack of memory is no damage, and nothing is once the files are proven."""
        if failure is None:
            return "another host could not load it"
        if not isinstance(failure, orbax.LoadError):
            raise failure
        if proven or "RESOURCE_EXHAUSTED" in str(failure) or "MemoryError" in str(failure):
            raise NoCheckpointError(f"{folder} is whole, but could not be loaded: {failure}") from failure
        return str(failure)
