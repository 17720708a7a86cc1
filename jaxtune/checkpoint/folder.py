"""The folder of a run's checkpoints, as files alone: what is there, what a kill left behind, what is moved out of the way.

Everything is a rename or a removal that may be cut off at any moment without leaving half a checkpoint under its number.

    50/                 a checkpoint; it counts as durable once it holds its manifest
    60.orbax-...tmp/    being written, or left by a kill
    50.replaced/        the old 50 while a new one is being written
    archive/60/         taken back by the last rollback
    quarantine/40-.../  damaged, kept for inspection, with the reason beside it
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from jaxtune.checkpoint import manifest
from jaxtune.core.files import sync_folder

_LOG = logging.getLogger(__name__)
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleting")


@dataclass(frozen=True)
class Durable:
    """A checkpoint that would survive a power cut now."""

    step: int
    time: float  # seconds since 1970


class StepFolder:
    def __init__(self, path: Path):
        self.path = Path(path).absolute()

    def __str__(self) -> str:
        return str(self.path)

    def of(self, step: int) -> Path:
        return self.path / str(step)

    def committed(self) -> list[int]:
        """The steps that Orbax finished, ascending; perhaps not yet proven, perhaps damaged."""
        if not self.path.is_dir():
            return []
        return sorted(int(path.name) for path in self.path.iterdir() if path.name.isdecimal() and path.is_dir())

    def durable(self) -> list[int]:
        """The steps with a manifest, ascending."""
        return [step for step in self.committed() if manifest.exists(self.of(step))]

    def newest(self) -> Durable | None:
        """The newest step with a manifest."""
        steps = self.durable()
        return Durable(steps[-1], manifest.written_at(self.of(steps[-1]))) if steps else None

    def tidy(self) -> None:
        """Makes the folder, removes what a killed or failed save left, brings back a step whose replacement was never finished."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in list(self.path.iterdir()):
            if any(mark in path.name for mark in _UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".replaced":
                self.settle(int(path.stem))

    def set_aside(self, step: int) -> None:
        """Makes place for a new checkpoint of a step that is there already."""
        if self.of(step).exists():
            self.of(step).rename(self._replaced(step))

    def settle(self, step: int) -> None:
        """After `set_aside`: the new one counts when it is proven, otherwise the old one does."""
        old = self._replaced(step)
        if not old.exists():
            return
        if manifest.exists(self.of(step)):
            shutil.rmtree(old, ignore_errors=True)
        else:
            self.remove(step)
            old.rename(self.of(step))

    def remove(self, step: int) -> None:
        if self.of(step).exists():
            shutil.rmtree(self.of(step).rename(self.path / f"{step}.deleting"), ignore_errors=True)

    def archive(self, steps: list[int]) -> None:
        """Moves steps to `archive/`, which then holds these alone."""
        self.drop_archive()
        place = self.path / "archive"
        place.mkdir()
        for step in steps:
            self.of(step).rename(place / str(step))
        sync_folder(self.path)

    def drop_archive(self) -> None:
        shutil.rmtree(self.path / "archive", ignore_errors=True)

    def quarantine(self, step: int, why: str) -> None:
        """Moves a damaged step out of the way; nothing is deleted, a folder that cannot be written is left as it is."""
        try:
            place = self.path / "quarantine" / f"{step}-{time.time_ns() // 1_000_000}"
            place.parent.mkdir(exist_ok=True)
            self.of(step).rename(place)
            place.with_name(place.name + ".txt").write_text(why + "\n", encoding="utf-8")
        except OSError as error:
            _LOG.warning("step %d could not be moved to quarantine/ (%s)", step, error)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path).free

    def quarantined_bytes(self) -> int:
        return sum(file.stat().st_size for file in (self.path / "quarantine").rglob("*") if file.is_file())

    def _replaced(self, step: int) -> Path:
        return self.path / f"{step}.replaced"
