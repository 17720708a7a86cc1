"""`jaxtune branch`: a new run from the best checkpoint of another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune.api import branch
from jaxtune.cli.output import Output
from jaxtune.cli.watching import show_result, watching
from jaxtune.experiment import load_experiment
from jaxtune.tasks.labelled import LabelledTask


def run(output: Output, run_folder: Path, changes: Sequence[str], name: str | None) -> dict[str, Any]:
    with watching(output) as watch:
        result, lineage = branch(run_folder, changes, name=name, watch=watch)
    shown = show_result(output, result)
    test, before = result.test or result.validation, lineage["parent_numbers"]
    rows = [
        (key, f"{before[key]:.4f}", f"{value:.4f}", f"{value - before[key]:+.4f}")
        for key, value in test.items()
        if _both(value, before.get(key))
    ]
    output.table(rows, head=(f"{lineage['split']}", Path(lineage["run"]).name, result.folder.name, "difference"))
    if rows and isinstance(load_experiment(result.folder / "resolved.yaml").task, LabelledTask):
        output.say(f"Is the difference real? jaxtune compare {lineage['run']} {result.folder}")
    return {**shown, "branched_from": lineage}


def _both(*values: Any) -> bool:
    return all(isinstance(value, float) for value in values)
