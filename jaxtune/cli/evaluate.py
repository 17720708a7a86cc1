"""`jaxtune evaluate RUN`: a checkpoint measured on one split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.api import Which
from jaxtune.api import evaluate as measure
from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError


def run(output: Output, run_folder: Path, split: str, checkpoint: str) -> dict[str, Any]:
    found = measure(run_folder, split, which(checkpoint))
    rows = [(name, f"{value:.4f}") for name, value in found.metrics.items() if isinstance(value, float)]
    output.table(rows, head=(split, ""))
    return {"run": str(run_folder), "split": split, "checkpoint": checkpoint, "metrics": dict(found.metrics)}


def which(checkpoint: str) -> Which:
    """best, latest or a step.

    Raises:
        ConfigError: neither.
    """
    if checkpoint == "best":
        return "best"
    if checkpoint == "latest":
        return "latest"
    if checkpoint.isdecimal():
        return int(checkpoint)
    raise ConfigError(f'--checkpoint: found "{checkpoint}"; expected best, latest or the number of a step')
