"""TensorBoard event files, written by tensorboardX (no TensorFlow, no PyTorch)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxtune.core.errors import ConfigError
from jaxtune.core.files import plain
from jaxtune.core.redact import redact
from jaxtune.tracking.base import Sink, Tracker

MISSING = 'tracking: kind tensorboard needs the package tensorboardX; install it with: pip install "jaxtune[track]"'


class TensorBoard(Tracker):
    """Writes event files for TensorBoard: `tensorboard --logdir runs`."""

    subfolder: str = Field(default="tensorboard", description="where the event files go, inside the run folder")
    flush_seconds: int = Field(default=30, ge=1, description="how often numbers reach the disk")

    def problems(self) -> list[str]:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            return [MISSING]
        return []

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ConfigError(MISSING) from error
        writer = SummaryWriter(str(folder / self.subfolder), purge_step=step + 1 if step else None, flush_secs=self.flush_seconds)
        text = redact(json.dumps(plain(experiment), indent=2, ensure_ascii=False))
        writer.add_text("experiment", "\n".join("    " + line for line in text.splitlines()), step)  # indented: shown as it is
        return _TensorBoardSink(writer)


class _TensorBoardSink(Sink):
    def __init__(self, writer: Any):
        self._writer = writer

    def log(self, row: Mapping[str, Any]) -> None:
        """Numbers become `<split>/<name>`; lists and words have no curve and stay in metrics.jsonl."""
        split, step = row.get("split", "run"), int(row["step"])
        for name, value in plain({k: v for k, v in row.items() if k not in ("step", "split")}).items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                self._writer.add_scalar(f"{split}/{name}", value, step)
            elif value in ("NaN", "Infinity", "-Infinity"):
                self._writer.add_scalar(f"{split}/{name}", math.nan, step)

    def close(self) -> None:
        self._writer.close()
