"""`jaxtune train X.yaml`: the whole run, with a panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.cli.watching import show_result, watching
from jaxtune.experiment import load_experiment
from jaxtune.run import run as run_experiment


def run(output: Output, experiment: Path, overrides: list[str], runs_dir: str, name: str | None) -> dict[str, Any]:
    loaded = load_experiment(experiment, overrides)
    given = experiment.read_text(encoding="utf-8")
    if overrides:
        given += "\n# on the command line: " + " ".join(overrides) + "\n"
    with watching(output) as watch:
        result = run_experiment(loaded, runs_dir=runs_dir, name=name, given=given, watch=watch)
    return show_result(output, result)
