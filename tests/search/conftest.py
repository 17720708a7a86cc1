"""A search of a tiny experiment: one phase of 15 steps that takes a second, evaluated five times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = """\
extends: tiny.yaml
name: small
task: {loss: cross_entropy}
phases:
  - train: ["head.*", "pooler.*"]
    epochs: 3
    optimizer: {kind: adamw, schedule: {kind: constant, rate: 1.0e-2}}
evaluation: {every_steps: 3}
"""

SEARCH = """\
name: tiny-search
experiment: small.yaml
space:
  phases.0.optimizer.schedule.rate: {kind: float, low: 1.0e-4, high: 1.0e-1, log: true}
  model.dropout.head: {kind: float, low: 0.0, high: 0.5}
strategy: random
trials: 4
"""


@pytest.fixture
def small(tiny_experiment: Path) -> Callable[[str], Path]:
    """Writes a search file beside `small.yaml`, in the current folder."""
    (tiny_experiment.parent / "small.yaml").write_text(SMALL)

    def write(text: str = SEARCH) -> Path:
        path = tiny_experiment.parent / "search.yaml"
        path.write_text(text)
        return path

    return write
