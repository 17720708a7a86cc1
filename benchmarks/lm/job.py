"""What one measured process is told and what it hands back; read by every side, so it needs nothing but numpy."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from encoder.job import Marks, versions

__all__ = ["Batches", "Job", "Marks", "versions"]


@dataclass(frozen=True)
class Job:
    """One training in one process.

    Attributes:
        data: file of `Batches`, trained on in their order.
        model: folder of the base checkpoint.
        adapter: folder of the adapter that every side starts from, in peft's format.
        steps: optimizer steps, the first among them.
    """

    precision: str
    data: str
    model: str
    adapter: str
    folder: str
    steps: int
    rate: float
    weight_decay: float
    threads: int

    @classmethod
    def read(cls) -> Job:
        return cls(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

    @property
    def output(self) -> Path:
        return Path(self.folder) / "outcome.json"

    def finish(self, marks: Marks, losses: list[float], *packages: str) -> None:
        """`losses`: of every step, before its update."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        told = {**marks.outcome(), "losses": losses, "peak_bytes": peak, "versions": versions(*packages)}
        self.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Batches:
    """The batches of a training: tokens i32[step, B, T], mask i32 (1: a real token), weight f32 (1: a token to be learned)."""

    tokens: np.ndarray
    mask: np.ndarray
    weight: np.ndarray

    def write(self, path: Path) -> None:
        np.savez(path, tokens=self.tokens, mask=self.mask, weight=self.weight)

    @classmethod
    def read(cls, path: str | Path) -> Batches:
        with np.load(path) as file:
            return cls(file["tokens"], file["mask"], file["weight"])

    @property
    def real_tokens(self) -> list[int]:
        """Of each batch, padding left out."""
        return self.mask.sum((1, 2)).tolist()
