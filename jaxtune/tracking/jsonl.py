"""metrics.jsonl in the run folder: one JSON object a line, what every report and comparison reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtune.core.files import Rows
from jaxtune.tracking.base import Sink, Tracker

FILE = "metrics.jsonl"


class JsonLines(Tracker):
    """Always on: writes metrics.jsonl."""

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        rows = Rows(folder / FILE)
        rows.drop_after(step)
        return _JsonLinesSink(rows)


class _JsonLinesSink(Sink):
    def __init__(self, rows: Rows):
        self._rows = rows

    def log(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)

    def close(self) -> None:
        """Nothing is kept open."""
