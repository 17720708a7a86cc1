"""`jaxtune soup RUN RUN ... -o OUT`: the average of several runs' weights, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError
from jaxtune.soup import soup


def run(output: Output, runs: list[str], out: Path, weights: str | None, greedy: bool) -> dict[str, Any]:
    made = soup(runs, out, weights=None if weights is None else read_weights(weights), greedy=greedy)
    output.table([(str(one), f"{one.weight:.4g}") for one in made.ingredients], head=("checkpoint", "share"))
    if greedy:
        output.say(
            f"taken: {len(made.ingredients)} of {len(runs)}; validation {made.ingredients[0].experiment.task.best} {made.metric:.4f}"
        )
    output.say(f"{made.folder}: {made.averaged} tensors averaged, {made.equal} the same in all")
    return {
        "folder": str(made.folder),
        "ingredients": [{"run": str(one.folder.path), "step": one.step, "weight": one.weight} for one in made.ingredients],
        "averaged": made.averaged,
        "equal": made.equal,
        "metric": made.metric,
    }


def read_weights(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f'--weights: found "{text}"; expected numbers with commas between, such as 0.7,0.3') from error
