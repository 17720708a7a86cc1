"""The folder of a run: made new or opened again, owned by one process, with its state, its log and its record of the surroundings.

Nothing is ever written over by accident: a new run never takes an existing folder, and a lock keeps a second process out.

    experiment.yaml, resolved.yaml    as given and as understood      metrics.jsonl    one row of numbers a line (tracking)
    environment.json                  versions, git, devices          events.jsonl     saves, restarts, decisions, with reasons
    state.json                        running, preempted, ...         log.txt          the log, without secrets
    evaluations.jsonl                 by class and length             checks.json      wrong labels, near copies
    samples.jsonl                     what the model wrote (language)
    checkpoints/ predictions/ plots/ export/ result.json report.html
    adjust/                           changes asked for while it ran    branches/ lineage.json   runs that began here, where it began
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.core.files import Rows, plain, write_whole
from jaxtune.core.lock import Lock
from jaxtune.core.redact import redact, redact_command

_LOG = logging.getLogger(__name__)
_PACKAGES = ("jaxtune", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "safetensors", "numpy")
_ENVIRONMENT = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "CUDA_VISIBLE", "NCCL_", "JAXTUNE_", "SLURM_JOB_ID", "OMP_NUM_THREADS")

Status = Literal["running", "preempted", "interrupted", "failed", "done"]


class RunFolder:
    """Paths and small files of one run. As a context manager it holds the lock and writes the log.

    Raises (on entering):
        FolderLockedError: another process owns the folder.
    """

    def __init__(self, path: Path):
        self.path = Path(path).absolute()
        self.checkpoints = self.path / "checkpoints"
        self.experiment = self.path / "experiment.yaml"
        self.resolved = self.path / "resolved.yaml"
        self.result = self.path / "result.json"
        self.metrics = Rows(self.path / "metrics.jsonl")
        self.evaluations = Rows(self.path / "evaluations.jsonl")
        self.samples = Rows(self.path / "samples.jsonl")
        self._events = Rows(self.path / "events.jsonl")
        self._lock = Lock(self.path / "lock")
        self._handlers: list[logging.Handler] = []
        self._old_level = logging.NOTSET

    @classmethod
    def create(cls, runs: Path, name: str) -> RunFolder:
        """Makes `runs/name`, or `name-2`, `name-3`, ... when that exists.

        Raises:
            ConfigError: the name cannot be a folder name.
            DiskError: the folder cannot be made.
        """
        if not name or name in (".", "..") or any(character in name for character in "/\\\0") or name != name.strip():
            raise ConfigError(f'name: "{name}" cannot name a folder; use letters, digits, "-", "_" and "."')
        try:
            runs.mkdir(parents=True, exist_ok=True)
            for number in range(1, 100_000):
                path = runs / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise DiskError(
                f"{runs / name}: the run folder cannot be made ({error.strerror}); choose another place with --runs-dir"
            ) from error
        raise ConfigError(f"name: there are too many runs called {name} in {runs}")

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Opens a run made earlier.

        Raises:
            ConfigError: it is no run.
        """
        folder = cls(path)
        if not folder.path.is_dir():
            runs = sorted(state.parent.name for state in folder.path.parent.glob("*/state.json"))
            raise ConfigError(f"{path}: there is no such run" + (f" (runs there: {', '.join(runs[:20])})" if runs else ""))
        if not folder.resolved.is_file():
            raise ConfigError(f"{path}: this is no run folder (resolved.yaml is missing)")
        return folder

    def __enter__(self) -> RunFolder:
        self._lock.acquire()
        logger = logging.getLogger("jaxtune")
        try:
            handlers: list[logging.Handler] = [logging.FileHandler(self.path / "log.txt", encoding="utf-8")]
        except OSError as error:
            self._lock.release()
            raise DiskError(f"{self.path}: log.txt cannot be written ({error.strerror})") from error
        if not logger.hasHandlers():  # warnings would reach the terminal without us; they still do
            handlers.append(logging.StreamHandler())
            handlers[1].setLevel(logging.WARNING)
            handlers[1].setFormatter(_WithoutSecrets("jaxtune: %(message)s"))
        handlers[0].setFormatter(_WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for handler in handlers:
            logger.addHandler(handler)
        self._handlers, self._old_level = handlers, logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("jaxtune")
        logger.setLevel(self._old_level)
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        self._handlers = []
        self._lock.release()

    # Small files

    def write(self, name: str, text: str) -> None:
        """Writes a text file whole.

        Raises:
            DiskError: it could not be written.
        """
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise DiskError(f"{self.path / name} cannot be written ({error.strerror})") from error

    def write_json(self, name: str, value: Any) -> None:
        """As `write`; non-finite numbers become words such as "NaN"."""
        self.write(name, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")

    def event(self, kind: str, **facts: Any) -> None:
        """Appends to events.jsonl. Never raises: a full disk costs the event, not the run."""
        self._events.append({"time": _now(), "event": kind, **facts})

    def events(self) -> list[dict[str, Any]]:
        return list(self._events.read())

    def drop_after(self, step: int) -> int:
        """On resume: takes back the rows of metrics.jsonl that lie after the restored step. Returns how many."""
        return self.metrics.drop_after(step)

    # State

    def state(self) -> dict[str, Any]:
        """state.json; empty before the first `set_state`, or when it cannot be read."""
        try:
            return json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def set_state(self, status: Status, **facts: Any) -> None:
        """Replaces state.json; facts of before (last_durable_step, restarts, rejected, ...) stay unless given anew. Never raises."""
        try:
            write_whole(
                self.path / "state.json",
                json.dumps(plain({**self.state(), "status": status, "time": _now(), **facts}), indent=2, ensure_ascii=False) + "\n",
            )
        except OSError as error:
            _LOG.warning("%s/state.json could not be written (%s)", self.path, error)

    # Surroundings

    def write_environment(self, devices: Sequence[str], command: Sequence[str] = (), **facts: Any) -> None:
        """environment.json: what the run's numbers depend on besides the experiment. A resumed run adds itself to the list.

        Args:
            devices: one text per device, such as "cpu:0".
            command: the command line (`sys.argv`); secrets are hidden.
            facts: data fingerprint, licence of the base model, mesh, ...
        """
        start = {
            "time": _now(),
            "command": redact_command(command or sys.argv),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "versions": {name: found for name in _PACKAGES if (found := _version(name))},
            "git": {"jaxtune": git_state(Path(__file__).parent), "here": git_state(Path.cwd())},
            "environment": {k: redact(v) for k, v in sorted(os.environ.items()) if k.startswith(_ENVIRONMENT)},
            "devices": list(devices),
            **facts,
        }
        path = self.path / "environment.json"
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))["starts"]
        except (OSError, ValueError, KeyError):
            earlier = []
        self.write_json(path.name, {"starts": [*earlier, start]})


def runs_folder(place: str | Path) -> Path:
    """Where run folders are made.

    Raises:
        ConfigError: it is no folder of this machine, such as a bucket, which would become a folder called "gs:".
    """
    if re.match(r"[a-z][a-z0-9+]*:/", str(place)):
        raise ConfigError(
            f'--runs-dir: "{place}" is no folder of this machine; name one (mount the bucket, or copy the run there afterwards)'
        )
    return Path(place)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a repository or without git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


class _WithoutSecrets(logging.Formatter):
    """Redacts the finished text, so that tracebacks are covered too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
