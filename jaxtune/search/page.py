"""search.html: one page about a search that loads nothing and runs no script, in the report's look."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from jaxtune.core.files import write_whole
from jaxtune.core.printable import printable
from jaxtune.evaluation import charts, wording
from jaxtune.evaluation.pages import fill
from jaxtune.search.plots import history, parallel
from jaxtune.search.results import Found
from jaxtune.search.space import Space, short_names

SHOWN = 60  # rows of the table of trials; trials.jsonl has all
WIDE, NARROW = 860, 420


def write_page(folder: Path, space: Space, found: Found, numbers: Mapping[str, Any]) -> Path:
    """Writes search.html and plots/*.svg; the page's path."""
    names = short_names(list(space.parameters))
    keys = sorted(space.parameters, key=lambda key: -found.importance.get(key, 0.0))
    metric = wording.metric(space.metric)
    drawings: dict[str, Callable[[int], Markup]] = {}
    if found.order:
        drawings = {
            "history": lambda width: history(found.records, metric, space.higher_is_better, width),
            "parallel": lambda width: parallel(
                found.order, keys if width == WIDE else keys[:4], names, space.parameters, metric, space.higher_is_better, width
            ),
        }
    (folder / "plots").mkdir(exist_ok=True)
    for name, draw in drawings.items():
        write_whole(folder / "plots" / f"{name}.svg", charts.alone(draw(WIDE)))
    page = fill(
        "search.html",
        name=printable(numbers["name"], 120),
        metric=metric,
        verdict=verdict(numbers, metric),
        tiles=tiles(numbers, metric),
        figures={name: {"wide": draw(WIDE), "narrow": draw(NARROW)} for name, draw in drawings.items()},
        settings=[] if found.winner is None else [(key, said(value)) for key, value in found.winner.settings.items()],
        importance=[(names.get(key, key), share) for key, share in found.importance.items()],
        finalists=numbers["finalists"],
        narrowed=[(row["round"], row["trial"], [(names[key], said(low), said(high)) for key, (low, high) in row["ranges"].items()]) for row in numbers["narrowed"]],
        heads=[names[key] for key in keys],
        rows=rows(found, keys),
        trials=len(found.records),
        file=None if found.winner is None else str(folder / "winner.yaml"),
    )  # fmt: skip
    write_whole(folder / "search.html", page)
    return folder / "search.html"


def verdict(numbers: Mapping[str, Any], metric: str) -> list[str]:
    """What came out, in sentences."""
    counts, winner = numbers["trials"], numbers["winner"]
    tried = counts["complete"] + counts["stopped"] + counts["failed"]
    of = f" of {counts['wanted']}" if counts["wanted"] and tried != counts["wanted"] else ""
    first = f"{tried}{of} settings were tried in {numbers['steps']:,} optimizer steps, with {wording.plural(numbers['compilations'], 'compilation')}."
    if winner is None:
        return [first, "None has trained to its end yet."]
    second = f"Trial {winner['trial']} is the best: {metric} {wording.value(winner['value'])} on validation."
    if repeats := winner.get("repeats"):
        second = (
            f"Trial {winner['trial']} is the best: {metric} {wording.value(repeats['mean'])} on average over {len(repeats['values'])} other seeds "
            f"({wording.value(repeats['least'])} to {wording.value(repeats['greatest'])}), {wording.value(winner['value'])} when it was found."
        )
    return [second, first]


def tiles(numbers: Mapping[str, Any], metric: str) -> list[tuple[str, str, str]]:
    counts, winner = numbers["trials"], numbers["winner"]
    ended = [f"{counts[state]} {state}" for state in ("complete", "stopped", "failed", "running") if counts[state]]
    found = []
    if winner is not None:
        repeats = winner.get("repeats")
        value, of = (
            (winner["value"], "best on validation")
            if repeats is None
            else (repeats["mean"], f"mean of {len(repeats['values'])} other seeds")
        )
        found = [(metric, wording.value(value), f"{of}, trial {winner['trial']}")]
    return [
        *found,
        ("trials", str(sum(counts[state] for state in ("complete", "stopped", "failed", "running"))), ", ".join(ended)),
        ("optimizer steps", f"{numbers['steps']:,}", "of all trials" + (f"; {numbers['finalist_steps']:,} more for finalists" if numbers["finalist_steps"] else "")),
        ("time", wording.duration(numbers["seconds"]), "of all trials together"),
        ("compilations", str(numbers["compilations"]), "of the training step"),
    ]  # fmt: skip


def rows(found: Found, keys: list[str]) -> list[dict[str, Any]]:
    """Trials best first, then those without a number."""
    rest = [record for record in found.records if record not in found.order]
    return [
        {
            "number": record.number, "state": record.state, "value": record.value, "steps": record.steps,
            "reason": printable(record.reason, 300), "cells": [said(record.settings[key]) if key in record.settings else "" for key in keys],
            "won": found.winner is not None and record.number == found.winner.number,
        }
        for record in [*found.order, *rest][:SHOWN]
    ]  # fmt: skip


def said(value: Any) -> str:
    """A setting in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 80)
