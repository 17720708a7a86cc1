"""`jaxtune search SEARCH.yaml`: settings tried one after the other, a line for each, and the winner's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.evaluation import wording
from jaxtune.search.page import said
from jaxtune.search.run import SearchResult, search
from jaxtune.search.space import short_names
from jaxtune.search.study import FinalistEnded, Narrowed, TrialBegan, TrialEnded


def run(output: Output, file: Path, overrides: list[str], runs_dir: str, name: str | None, worker: bool) -> dict[str, Any]:
    result = search(file, overrides, runs_dir=runs_dir, name=name, worker=worker, watch=Lines(output))
    if worker:
        output.say("nothing is left to begin; the process without --worker writes the winner")
    else:
        show(output, result)
    return {"search": str(result.folder), **result.numbers}


class Lines:
    """A line for each trial that ends."""

    def __init__(self, output: Output):
        self.output, self.began = output, False

    def __call__(self, event: Any) -> None:
        if isinstance(event, TrialBegan):
            if event.again:
                self.output.say(f"trial {event.number} goes on")
            elif not self.began:
                self.output.say("the first trial compiles; those after it that differ in numbers alone do not")
            self.began = True
        elif isinstance(event, TrialEnded):
            self.output.say(line(event))
        elif isinstance(event, Narrowed):
            names = short_names(list(event.ranges))
            ranges = ", ".join(f"{names[key]} {said(low)} to {said(high)}" for key, (low, high) in event.ranges.items())
            self.output.say(f"narrowed from trial {event.trial} on: {ranges}")
        elif isinstance(event, FinalistEnded):
            value = "failed" if event.value is None else f"{event.value:.4f}"
            self.output.say(f"trial {event.trial} again with seed {event.seed}: {value}")


def line(event: TrialEnded) -> str:
    """Number, value, how it ended, steps, settings."""
    record = event.record
    names = short_names(list(record.settings))
    settings = "  ".join(f"{names[key]} {said(value)}" for key, value in record.settings.items())
    value = "-" if record.value is None else f"{record.value:.4f}"
    end = {"complete": "", "stopped": "  stopped", "failed": f"  failed: {record.reason[:160]}"}.get(record.state, "")
    best = "  best" if event.is_best else ""
    of = "" if event.of is None else f" of {event.of}"
    seconds = wording.duration(float(record.facts.get("seconds", 0.0)))
    return f"trial {record.number:3d}{of}  {value}  {record.steps:5d} steps  {seconds:>6}{best}{end}  {settings}"


def show(output: Output, result: SearchResult) -> None:
    """The winner and where everything lies."""
    numbers = result.numbers
    counts, winner = numbers["trials"], numbers["winner"]
    output.say()
    ended = ", ".join(f"{counts[state]} {state}" for state in ("complete", "stopped", "failed") if counts[state])
    output.say(
        f"{sum(counts[state] for state in ('complete', 'stopped', 'failed'))} trials ({ended}), {numbers['steps']:,} steps, {wording.plural(numbers['compilations'], 'compilation')} of the step"
    )
    if winner is not None:
        output.say(f"best: trial {winner['trial']}, {numbers['metric']} {winner['value']:.4f} on validation{spread(winner)}")
        output.table([(key, json.dumps(value, ensure_ascii=False)) for key, value in winner["settings"].items()])
        output.say()
        output.say(f"train it  jaxtune train {result.winner}")
    output.say(f"page      {result.page}")


def spread(winner: dict[str, Any]) -> str:
    repeats = winner.get("repeats")
    if repeats is None:
        return ""
    return f"; with {len(repeats['values'])} other seeds {repeats['mean']:.4f} ({repeats['least']:.4f} to {repeats['greatest']:.4f})"
