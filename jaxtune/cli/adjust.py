"""`jaxtune adjust`: asks a run to go on differently."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune.adjust import Requests, adjusted, standing
from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError
from jaxtune.experiment import load_experiment
from jaxtune.run_folder import RunFolder


def run(output: Output, run_folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    folder = RunFolder.existing(run_folder)
    status = folder.state().get("status")
    if status == "done":
        raise ConfigError(
            f"{run_folder}: the run is done; start a new one from its best checkpoint: jaxtune branch {run_folder} {changes[0]}"
        )
    requests = Requests(folder.path)
    phase = max((event["phase"] for event in folder.events() if event["event"] == "phase"), default=0)
    adjusted(standing(load_experiment(folder.resolved), requests), changes, phase)
    number = requests.ask(changes)
    when = "at the next evaluation or save" if status == "running" else f"once it goes on: jaxtune resume {run_folder}"
    output.say(f"change {number} of {folder.path.name}: {' '.join(changes)}")
    output.say(f"The run takes it up {when}; events.jsonl and its output tell.")
    return {"run": str(folder.path), "number": number, "changes": list(changes), "status": status}
