"""The top of the report: the verdict in sentences, the few numbers that everybody asks for, and all numbers with their intervals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxtune.core.printable import printable
from jaxtune.evaluation import wording
from jaxtune.evaluation.record import SPLITS, number
from jaxtune.evaluation.sections.seen import Seen


def headline(seen: Seen) -> dict[str, Any]:
    return {
        "verdict": [said for said in (_how_good(seen), _from_what(seen), _which_step(seen)) if said],
        "tiles": _tiles(seen),
        "splits": [split for split in SPLITS if seen.record.result.get(split)],
        "numbers": _numbers(seen),
        "baseline": _baseline(seen),
    }


def _how_good(seen: Seen) -> Markup | None:
    name = seen.record.best_metric
    if name not in seen.measured:
        return None
    interval, value = seen.interval(seen.split, name), wording.value(number(seen.measured[name]))
    examples = "" if seen.outcomes is None else f" on {wording.plural(len(seen.outcomes), 'example')}"
    between = "" if interval is None else f" (95\u00a0% interval {wording.value(interval.low)} to {wording.value(interval.high)})"
    return Markup("{} {} is <strong>{}</strong>{}{}.").format(seen.split.capitalize(), wording.metric(name), value, between, examples)


def _from_what(seen: Seen) -> Markup:
    base = seen.record.experiment["model"]["base"]
    if isinstance(base, Mapping):
        origin = Markup("A new {} model was trained").format(base["family"])
    else:
        origin = Markup("<code>{}</code> was fine-tuned").format(printable(base, 120))
    return Markup("{}, {}, in {} on {}.").format(origin, _trained(seen), wording.duration(seen.record.wall_seconds), _devices(seen))


def _trained(seen: Seen) -> str:
    """Which share of the parameters trained, phase by phase."""
    phases, shares = seen.record.phases, []
    for index, phase in enumerate(phases):
        share = "all" if phase.trained == phase.parameters else wording.percent(phase.trained / phase.parameters)
        of = "them" if index else f"{wording.count(phase.parameters)} parameters"
        shares.append(f"{share} of {of} for {wording.plural(phase.steps, 'step')}")
    if len(shares) > 3:
        return f"{shares[0]} and on through {len(shares)} phases, {wording.plural(seen.record.result['steps'], 'step')} in all"
    return ", then ".join(shares)


def _devices(seen: Seen) -> str:
    found = seen.record.starts[-1]["devices"] if seen.record.starts else []
    kind = re.match(r"[A-Za-z]+", str(found[0])) if found else None
    return wording.plural(len(found), f"{kind[0].upper()} device") if kind else "unknown devices"


def _which_step(seen: Seen) -> Markup | None:
    result, name = seen.record.result, seen.record.best_metric
    steps, values = seen.record.curve("validation", name)
    best = values[steps == result["best_step"]]
    if not len(best) or seen.split != "test":
        return None
    said = Markup("The model is that of step {} of {}, where validation was best ({} {}).")
    return said.format(result["best_step"], result["steps"], wording.metric(name), wording.value(float(best[0])))


def _tiles(seen: Seen) -> list[tuple[str, str, str]]:
    """(what, number, remark)."""
    record, name, tiles = seen.record, seen.record.best_metric, []
    if name in seen.measured:
        interval = seen.interval(seen.split, name)
        remark = "" if interval is None else f"95\u00a0%: {wording.value(interval.low)} to {wording.value(interval.high)}"
        tiles.append((f"{seen.split} {wording.metric(name)}", wording.value(number(seen.measured[name])), remark))
    if seen.classified is not None:
        wrong = seen.classified.truth != seen.classified.predicted
        count = int((wrong if wrong.ndim == 1 else wrong.any(1)).sum())
        what = "wrong answers" if wrong.ndim == 1 else "examples with an error"
        tiles.append((what, f"{count:,}", f"of {wording.plural(len(seen.classified), 'example')}"))
    elif seen.outcomes is not None:
        typical = float(np.median(np.abs(seen.outcomes.predicted - seen.outcomes.truth)))
        tiles.append(("median error", wording.value(typical), f"of {wording.plural(len(seen.outcomes), 'example')}"))
    tiles.append(("best step", f"{record.result['best_step']:,}", f"of {record.result['steps']:,}"))
    tiles.append(("run time", wording.duration(record.wall_seconds), f"{wording.duration(record.times.steps)} in training steps"))
    return tiles


def _numbers(seen: Seen) -> list[dict[str, Any]]:
    """Every single number of validation and test, the deciding metric first."""
    best, result = seen.record.best_metric, seen.record.result
    splits = [split for split in SPLITS if result.get(split)]
    names = dict.fromkeys(name for split in splits for name, value in result[split].items() if not isinstance(value, list))
    rows = []
    for name in sorted(names, key=lambda name: name != best):
        told = [(result[split].get(name), seen.interval(split, name)) for split in splits]
        cells = [(None if value is None else number(value), interval) for value, interval in told]
        rows.append({"name": wording.metric(name), "cells": cells, "decides": name == best})
    return rows


def _baseline(seen: Seen) -> str:
    """What an answer that looks at nothing would reach."""
    outcomes = seen.outcomes
    if outcomes is None or outcomes.problem == "multi_label":
        return ""
    if outcomes.problem == "regression":
        error = wording.value(float(outcomes.truth.var()))
        return f"Always answering the mean of these examples would give a mean squared error of {error}."
    counts = np.bincount(outcomes.truth, minlength=outcomes.classes)
    name = outcomes.shown[int(counts.argmax())]
    return f"Always answering “{name}”, the most frequent class, would be right for {wording.percent(counts.max() / len(outcomes))}."
