"""Runs as they go, for a live page: what stands in their folders, read as it grows.

Only whole new lines are read each time, and of many steps only every so many are parsed, so that a hundred thousand rows and fifty runs
cost what a screen can show. No lock is taken and nothing is written: the training does not know that it is watched.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxtune.config.yaml12 import Yaml12Loader
from jaxtune.core.printable import printable
from jaxtune.data.facts import FILE as FACTS
from jaxtune.evaluation import wording
from jaxtune.evaluation.charts import smooth, thin

MOST_POINTS = 500  # of a curve that is sent
MOST_KEPT = 4000  # steps of a run that are held
MOST_RUNS = 200
DEPTH = 3  # folders below the one that is watched
INSIDE = ("checkpoints", "export", "plots", "predictions", "tensorboard")  # of a run
TRAIN = b'"split": "train"'
BETWEEN_SCANS_SECONDS = 2.0


class Tail:
    """The lines that a file has gained since the last look."""

    def __init__(self, path: Path):
        self.path, self.inode, self.offset = path, 0, 0

    def read(self) -> tuple[bool, list[bytes]]:
        """(whether the file is another than before, its new whole lines). One that is gone is an empty one."""
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                anew = status.st_ino != self.inode or status.st_size < self.offset
                if anew:
                    self.inode, self.offset = status.st_ino, 0
                file.seek(self.offset)
                text = file.read()
        except OSError:
            anew, self.inode, self.offset = self.inode != 0, 0, 0
            return anew, []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return anew, whole.splitlines()


class Followed:
    """One run: its curves so far and its state."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, printable(name, 120)
        self.id = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
        self.metrics = Tail(folder / "metrics.jsonl")
        self.version = 0  # rises with every change of the curves
        self.small: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.forget()

    def forget(self) -> None:
        """Before the rows are read from the beginning."""
        self.steps: list[tuple[float, float, float]] = []  # step, loss, rate: every `stride`-th
        self.evaluations: dict[int, Mapping[str, Any]] = {}
        self.latest: Mapping[str, Any] = {}
        self.stride, self.seen = 1, 0

    def refresh(self) -> None:
        """Reads what is new."""
        anew, lines = self.metrics.read()
        if anew:
            self.forget()
        if anew or lines:
            self.version += 1
            self.take(lines)

    def take(self, lines: Sequence[bytes]) -> None:
        train = [line for line in lines if TRAIN in line]
        while (len(self.steps) + len(train) / self.stride) > MOST_KEPT:
            self.stride *= 2
            self.steps = self.steps[::2]
        for line in train[-self.seen % self.stride :: self.stride]:
            row = parse(line)
            if row:
                self.steps.append((number(row.get("step")), number(row.get("loss")), number(row.get("learning_rate"))))
        self.seen += len(train)
        self.latest = (parse(train[-1]) if train else None) or self.latest
        for line in lines:
            if TRAIN not in line and (row := parse(line)) and row.get("split") == "validation" and isinstance(row.get("step"), int):
                self.evaluations[row["step"]] = row

    # -- small files ----------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Mapping[str, Any]:
        """A small JSON or YAML file, read again when it changed; empty when it is not there or not whole."""
        path = self.folder / name
        try:
            changed = path.stat().st_mtime_ns
            if self.small.get(name, (0, {}))[0] == changed:
                return self.small[name][1]
            text = path.read_text(encoding="utf-8")
            found = yaml.load(text, Yaml12Loader) if name.endswith(".yaml") else json.loads(text)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        self.small[name] = (changed, found if isinstance(found, dict) else {})
        return self.small[name][1]

    @property
    def metric(self) -> str:
        """The number that decides; the loss where the experiment cannot be read."""
        task = self.file("resolved.yaml").get("task")
        return str(task.get("best", "loss")) if isinstance(task, Mapping) else "loss"

    @property
    def changed(self) -> float:
        """Time of its last sign of life."""
        times = [modified(self.folder / name) for name in ("metrics.jsonl", "state.json", "resolved.yaml")]
        return max(times)

    # -- what is shown --------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """A row of the table."""
        state, metric, latest = self.file("state.json"), self.metric, self.latest
        steps = [phase.get("steps") for phase in self.file(FACTS).get("phases") or []]
        best = [row for _, row in sorted(self.evaluations.items()) if row.get("best") is True and metric in row]
        last = [row for _, row in sorted(self.evaluations.items()) if metric in row]
        seconds = number(latest.get("seconds"))
        return {
            "id": self.id,
            "version": self.version,
            "name": self.name,
            "status": printable(state.get("status", "not begun"), 40),
            "reason": printable(state.get("reason") or "", 300),
            "quiet_seconds": max(0.0, time.time() - self.changed),
            "step": finite(latest.get("step")),
            "steps": sum(steps) if steps and all(isinstance(n, int) for n in steps) else None,
            "metric": wording.metric(printable(metric, 60)),
            "best": finite(best[-1][metric]) if best else None,
            "best_step": finite(best[-1]["step"]) if best else None,
            "last": finite(last[-1][metric]) if last else None,
            "loss": finite(latest.get("loss")),
            "rate": finite(latest.get("learning_rate")),
            "examples_per_second": finite(number(latest.get("examples")) / seconds) if seconds else None,
            "report": (self.folder / "report.html").is_file(),
        }

    def curves(self) -> dict[str, Any]:
        """At most MOST_POINTS points each: the training loss smoothed over a fortieth of the run, validation loss and metric, rate."""
        rows = np.array(self.steps, np.float64).reshape(-1, 3)
        at = sorted(self.evaluations)
        metric = self.metric
        return {
            "id": self.id,
            "version": self.version,
            "train": points(rows[:, 0], smooth(rows[:, 1], max(1.0, len(rows) / 40))),
            "validation": points(at, [number(self.evaluations[step].get("loss")) for step in at]),
            "metric": [] if metric == "loss" else points(at, [number(self.evaluations[step].get(metric)) for step in at]),
            "rate": points(rows[:, 0], rows[:, 2]),
        }


class Runs:
    """All runs in and below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self.known: dict[Path, Followed] = {}
        self.left_out, self.scanned = 0, -math.inf

    def refresh(self) -> None:
        """Looks for new runs and reads what the known ones have written."""
        if time.monotonic() - self.scanned >= BETWEEN_SCANS_SECONDS:
            self.scan()
            self.scanned = time.monotonic()
        for run in self.known.values():
            run.refresh()

    def scan(self) -> None:
        found = sorted(run_folders(self.folder, DEPTH), key=lambda path: modified(path / "metrics.jsonl"), reverse=True)
        self.left_out = max(0, len(found) - MOST_RUNS)
        kept = found[:MOST_RUNS]
        self.known = {path: self.known.get(path) or Followed(path, self.name(path)) for path in kept}

    def name(self, path: Path) -> str:
        return path.name if path == self.folder else str(path.relative_to(self.folder))

    def find(self, run_id: str) -> Followed | None:
        return next((run for run in self.known.values() if run.id == run_id), None)

    def table(self) -> dict[str, Any]:
        """All rows, those that changed last first."""
        runs = sorted(self.known.values(), key=lambda run: (-run.changed, run.name))
        return {"folder": printable(self.folder, 200), "left_out": self.left_out, "runs": [run.summary() for run in runs]}


def run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Folders of runs, themselves not looked into."""
    if (folder / "resolved.yaml").is_file():
        yield folder
        return
    if depth == 0:
        return
    try:
        with os.scandir(folder) as entries:
            inner = [
                Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".") and entry.name not in INSIDE
            ]
    except OSError:
        return
    for path in inner:
        yield from run_folders(path, depth - 1)


def points(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> list[list[float | None]]:
    """[step, value] of a curve, its extremes kept; None where there is no number."""
    xs, ys = thin(np.asarray(x, np.float64), np.asarray(y, np.float64), MOST_POINTS)
    return [[a, float(f"{b:.5g}") if math.isfinite(b) else None] for a, b in zip(xs.tolist(), ys.tolist(), strict=True)]


def number(value: Any) -> float:
    """A number as the files hold it; NaN for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan


def finite(value: Any) -> float | None:
    found = number(value)
    return found if math.isfinite(found) else None


def parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def modified(path: Path) -> float:
    """Seconds; 0 for what is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
