"""Weights & Biases. Rows carry their own step, because a resumed or rolled-back run tells steps again and W&B only counts upwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jaxtune.core.files import plain
from jaxtune.core.redact import redact
from jaxtune.tracking.background import InBackground, numbers
from jaxtune.tracking.base import Sink, Tracker

MISSING = "tracking: kind wandb needs the package wandb; install it with: pip install wandb"


class Wandb(Tracker):
    """Sends numbers to Weights & Biases, from a thread of its own: a service that hangs or fails does not touch the training."""

    project: str = Field(default="jaxtune", description="project that the run belongs to")
    entity: str | None = Field(default=None, description="user or team; null: the one that is logged in")
    group: str | None = Field(default=None, description="name that joins several runs")
    tags: tuple[str, ...] = Field(default=(), description="words to find the run by")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: kept in the run folder, to be sent with `wandb sync`"
    )
    close_seconds: float = Field(default=30.0, gt=0, description="how long the end of the run waits for what is still to be sent")

    def problems(self) -> list[str]:
        try:
            package()
        except ImportError:
            return [MISSING]
        return []

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        return InBackground("Wandb", lambda: self.start(folder, experiment), close_seconds=self.close_seconds)

    def start(self, folder: Path, experiment: Mapping[str, Any]) -> Sink:
        run = package().init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags),
            mode=self.mode,
            name=folder.name,
            id=identity(folder),
            resume="allow",
            dir=str(folder),
            config=json.loads(redact(json.dumps(plain(experiment)))),
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return _WandbSink(run)


class _WandbSink(Sink):
    def __init__(self, run: Any):
        self._run = run

    def log(self, row: Mapping[str, Any]) -> None:
        self._run.log({"step": int(row["step"]), **numbers(row)})

    def close(self) -> None:
        self._run.finish()


def identity(folder: Path) -> str:
    """The same for every start of a run, another for another run of that name: made of the folder and its first start."""
    try:
        begun = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["starts"][0]["time"]
    except (OSError, ValueError, KeyError, IndexError):
        begun = ""
    return hashlib.sha256(f"{folder.absolute()} {begun}".encode()).hexdigest()[:16]


def package() -> Any:
    """The package, which is no part of any installation of jaxtune.

    Raises:
        ImportError: it is missing.
    """
    import wandb  # pyright: ignore[reportMissingImports]

    return wandb
