"""What one measured process is told and what it hands back; read by every side, so it needs nothing but numpy.

A side notes the end of every optimizer step. All times come from these marks, so a step's time holds everything that its
framework does between two steps: fetching the batch, the call, reading the numbers.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """One training in one process.

    Attributes:
        mode: "steps" times steps of full rows only; "epochs" trains on the whole split and judges; "anatomy" takes a step apart.
        compiled: whether `torch_compile` is on; the other sides always compile.
        steps: optimizer steps in mode "steps", warm-up included.
        warm_up: steps of the rate's rise.
    """

    mode: str
    precision: str
    compiled: bool
    data: str
    model: str
    folder: str
    batch: int
    max_tokens: int
    steps: int
    epochs: int
    rate: float
    warm_up: int
    weight_decay: float
    seed: int
    threads: int

    @classmethod
    def read(cls) -> Job:
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    @property
    def output(self) -> Path:
        return Path(self.folder) / "outcome.json"

    def finish(self, outcome: dict[str, Any]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.output.write_text(json.dumps({**outcome, "peak_bytes": peak}, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Split:
    """Encoded texts and their class numbers."""

    tokens: list[np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def full(self, length: int) -> Split:
        """The rows that fill `length` tokens, so that padding plays no part."""
        kept = [i for i, row in enumerate(self.tokens) if len(row) == length]
        return Split([self.tokens[i] for i in kept], self.labels[kept])

    def padded(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, mask), int32[rows, width]."""
        tokens, mask = (np.zeros((len(self), width), np.int32) for _ in range(2))
        for i, row in enumerate(self.tokens):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        return tokens, mask


def write_splits(path: Path, splits: dict[str, Split]) -> None:
    arrays: dict[str, Any] = {}
    for name, split in splits.items():
        arrays[f"{name}.flat"] = np.concatenate(split.tokens).astype(np.int32)
        arrays[f"{name}.ends"] = np.cumsum([len(row) for row in split.tokens])
        arrays[f"{name}.labels"] = split.labels.astype(np.int32)
    np.savez(path, **arrays)


def read_splits(path: str) -> dict[str, Split]:
    with np.load(path) as file:
        names = sorted({name.partition(".")[0] for name in file.files})
        return {n: Split(np.split(file[f"{n}.flat"], file[f"{n}.ends"][:-1]), file[f"{n}.labels"]) for n in names}


@dataclass
class Marks:
    """The clock of one training; `start` when model and data are in memory, `step` at the end of every optimizer step."""

    began: float = 0.0
    cpu: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    compiled: list[bool] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.began = time.perf_counter()
        self.cpu = [time.process_time()]

    def step(self, compiled: bool = False) -> None:
        self.ends.append(time.perf_counter() - self.began)
        self.cpu.append(time.process_time())
        self.compiled.append(compiled)

    def epoch(self) -> None:
        """The step just noted was the last of its epoch."""
        self.epochs.append(self.ends[-1])

    def outcome(self) -> dict[str, Any]:
        """Seconds (and CPU seconds of all threads) of every step, whether something was compiled in it, seconds of every whole epoch."""
        return {
            "step_seconds": np.diff([0.0, *self.ends]).round(5).tolist(),
            "cpu_seconds": np.diff(self.cpu).round(5).tolist(),
            "compiled": self.compiled,
            "epoch_seconds": np.diff([0.0, *self.epochs]).round(4).tolist(),
        }


def versions(*packages: str) -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
