"""How the run went: its curves, what trained in which phase, what was decided, where the time went, and how to do it again."""

from __future__ import annotations

import math
import shlex
import unicodedata
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.evaluation import charts, wording
from jaxtune.evaluation.record import PhaseRecord, RunRecord, json_file, number
from jaxtune.evaluation.sections.seen import NARROW, WIDE, Figure, Seen

SHOWN_STEPS = 40  # the raw curve of at most so many steps is not smoothed
_DECISIONS = {
    "Stop": "stopped",
    "NextPhase": "ended the phase",
    "ScaleRate": "changed the learning rate",
    "Rollback": "went back to the best checkpoint",
}


def story(seen: Seen) -> dict[str, Any]:
    record = seen.record
    return {
        "phases": [_phase(phase) for phase in record.phases],
        "happened": _happened(record),
        "times": _times(record),
        "speed": _speed(record),
        "reproduce": _reproduce(record),
    }


# -- curves -----------------------------------------------------------------------------------------------------------------


def story_figures(seen: Seen) -> dict[str, Figure]:
    record, name = seen.record, seen.record.best_metric
    panels = [charts.Panel("Loss", _loss_lines(record))]
    x, y = record.curve("validation", name)
    if name != "loss" and len(x):
        panels.append(charts.Panel(f"Validation {wording.metric(name)}", [charts.Line("validation", x, y, "validation", dots=True)]))
    rate = charts.Line("rate", *record.curve("train", "learning_rate"), "rate")
    panels.append(charts.Panel("Learning rate", [rate], from_zero=True))
    best = record.result["best_step"]
    marks = [charts.Mark(best, f"best: step {best:,}", "best")]
    if len(record.phases) > 1:
        marks += [charts.Mark(phase.step, f"phase {phase.number + 1}", "phase") for phase in record.phases]
    told = ". ".join(f"{panel.title}: {'; '.join(_spoken(line) for line in panel.lines if line.legend)}" for panel in panels)
    text = f"Curves over {record.result['steps']} optimizer steps. {told}. The best step is {best}."
    return {"learning_curves": Figure(*(charts.curves(panels, marks, width, text) for width in (WIDE, NARROW)))}


def _loss_lines(record: RunRecord) -> list[charts.Line]:
    """Many steps are smoothed over a fortieth of the run, with the raw curve behind."""
    steps, loss = record.curve("train", "loss")
    if len(steps) <= SHOWN_STEPS:
        lines = [charts.Line("training", steps, loss, "train")]
    else:
        smoothed = charts.smooth(loss, len(steps) / 40)
        lines = [charts.Line("raw", steps, loss, "raw", legend=False), charts.Line("training", steps, smoothed, "train")]
    x, y = record.curve("validation", "loss")
    return [*lines, charts.Line("validation", x, y, "validation", dots=True)] if len(x) else lines


def _spoken(line: charts.Line) -> str:
    finite = line.y[np.isfinite(line.y)]
    if not len(finite):
        return f"{line.name}: no numbers"
    low, high = float(finite.min()), float(finite.max())
    between = "" if math.isclose(low, high) else f", between {low:.3g} and {high:.3g}"
    return f"{line.name} from {finite[0]:.3g} to {finite[-1]:.3g}{between}"


# -- phases and decisions ---------------------------------------------------------------------------------------------------


def _phase(phase: PhaseRecord) -> dict[str, Any]:
    optimizer = phase.settings["optimizer"]
    schedule = optimizer.get("schedule") or {}
    rate = next((schedule[key] for key in ("peak", "rate") if isinstance(schedule.get(key), int | float)), None)
    said = [wording.plural(phase.steps, "step"), str(optimizer["kind"])]
    if schedule:
        said.append(f"{schedule['kind']} schedule" + ("" if rate is None else f", rate {rate:g}"))
    return {"number": phase.number + 1, "said": ", ".join(said), "record": phase}


def _happened(record: RunRecord) -> list[tuple[int, str]]:
    """(step, what): decisions and interruptions in their order; skipped steps in one line."""
    lines: list[tuple[int, str]] = []
    skipped = [event["step"] for event in record.events if event["event"] == "skipped"]
    for event in record.events:
        kind, step = event["event"], event.get("step", 0)
        if kind == "decision":
            what = _DECISIONS.get(event["decision"]) or printable(event["decision"])
            lines.append((step, f"{what}: {printable(event.get('reason', ''), 300)}"))
        elif kind == "rolled_back":
            lines.append((step, f"went back to step {event['to']}; from there the learning rate is multiplied by {event['rate_scale']:g}"))
        elif kind == "resumed":
            refused = "".join(f"; checkpoint {at} was refused ({printable(reason, 160)})" for at, reason in event["rejected"])
            lines.append((step, f"resumed from this step's checkpoint{refused}"))
        elif kind in ("adjusted", "refused"):
            why = "" if kind == "adjusted" else f" ({printable('; '.join(event['problems']), 300)})"
            lines.append((step, f"{'changed' if kind == 'adjusted' else 'not changed'}: {printable(' '.join(event['changes']), 300)}{why}"))
    if skipped:
        lines.append((skipped[0], f"{wording.plural(len(skipped), 'step')} from here on skipped: loss or gradients were not finite"))
    return lines


# -- time -------------------------------------------------------------------------------------------------------------------


def _times(record: RunRecord) -> list[tuple[str, float, float]]:
    """(part, seconds, share)."""
    times = record.times
    rows = [
        ("training steps", times.steps),
        ("waiting for data", times.waiting),
        ("compiling", times.compiling),
        ("evaluating on validation", times.evaluating),
        ("holding steps up to save", times.saving),
        ("the rest: loading, final evaluation", times.rest),
    ]
    return [(name, seconds, seconds / max(times.total, 1e-9)) for name, seconds in rows]


def _speed(record: RunRecord) -> str:
    result, said = record.result, []
    if "examples_per_second" in result:
        said.append(f"{wording.count(number(result['examples_per_second']))} examples")
    if "image" not in record.task and "tokens_per_second" in result:
        said.append(f"{wording.count(number(result['tokens_per_second']))} tokens")
    speed = f"In training {' and '.join(said)} a second." if said else ""
    return f"{speed} {wording.memory(result['peak_memory_bytes'])} of memory at the most." if result.get("peak_memory_bytes") else speed


# -- again ------------------------------------------------------------------------------------------------------------------


def _reproduce(record: RunRecord) -> dict[str, Any]:
    first, last = (record.starts[0], record.starts[-1]) if record.starts else ({}, {})
    git = (last.get("git") or {}).get("jaxtune")
    source = record.experiment["data"]["source"]
    where = source.get("path") or source.get("name") or ""
    parent = json_file(record.folder / "lineage.json")
    rows = {
        "branched from": printable(f"{parent['run']}, step {parent['step']}: {' '.join(parent['changes'])}", 300) if parent else None,
        "seed": record.experiment["seed"],
        "data": f"{source['kind']} {printable(where if isinstance(where, str) else dict(where), 200)}",
        "data fingerprint": last.get("data"),
        "licence of the base model": last.get("licence") or "not stated",
        "jaxtune commit": f"{git['commit']}{', with uncommitted changes' if git['dirty'] else ''}" if git else None,
        "devices": ", ".join(str(device) for device in last.get("devices", [])[:8]),
        "Python": f"{last['python']} on {last['platform']}" if last else None,
        "started": first.get("time"),
    }
    return {
        "command": shlex.join(["jaxtune", *first["command"][1:]]) if first.get("command") else "",
        "rows": [(name, str(value)) for name, value in rows.items() if value not in (None, "")],
        "versions": last.get("versions", {}),
        "yaml": _visible(record.resolved_text),
    }


def _visible(text: str) -> str:
    """Characters that would turn the direction of a line or hide in it, as the numbers they are."""
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf") and c != "\n" else c for c in text)
