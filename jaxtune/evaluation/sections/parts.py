"""How the model does on parts of the split: lengths, classes, columns of the records, and parts that a tree found in the errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxtune.evaluation import charts, wording
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.record_columns import record_columns
from jaxtune.evaluation.sections.seen import Seen
from jaxtune.evaluation.slices import CLASS, Columns, Slice, found_parts, measure, own_columns, quartiles, scores, usual_parts

SHOWN = 24  # parts; the others are folded away
FEWEST = 5  # examples of a part


def parts(seen: Seen) -> dict[str, Any]:
    outcomes = seen.outcomes
    if outcomes is None or len(outcomes) < 2 * FEWEST:
        return {"slices": None}
    columns, why_not = _columns(seen, outcomes)
    values, shares = scores(outcomes), outcomes.problem != "regression"
    before = seen.record.outcomes.get("validation") if seen.split == "test" else None
    learn = None if before is None or len(before) < 4 * FEWEST else _columns(seen, before)[0]
    edges = quartiles(columns) | (quartiles(learn) if learn is not None else {})
    usual = usual_parts(columns, edges, least=FEWEST)
    found = (
        found_parts(learn, scores(before), columns) if learn is not None and before is not None else found_parts(columns, values, columns)
    )
    measured = measure([*usual, *found], values, shares=shares)
    if not measured:
        return {"slices": None}
    told = [_row(seen, one) for one in measured if one.by != "found"]
    searched = [_row(seen, one) for one in sorted((m for m in measured if m.by == "found"), key=lambda m: m.gap if shares else -m.gap)]
    clear = [one for one in measured if one.stands_out and (one.gap < 0) == shares]
    return {
        "slices": {
            "score": "right" if shares else "mean absolute error",
            "whole": float(values.mean()),
            "looks": len(measured),
            "said": _said(clear, shares),
            "rows": told[:SHOWN],
            "more": told[SHOWN:],
            "found": searched,
            "found_on": "validation" if learn is not None else seen.split,
            "why_no_columns": why_not,
            "has_trend": any(row["trend"] is not None for row in told),
        }
    }


def _columns(seen: Seen, outcomes: Outcomes) -> tuple[Columns, str]:
    theirs, why_not = record_columns(seen.records, outcomes.rows, seen.record.task)
    own = own_columns(outcomes)
    return own | {name: values for name, values in theirs.items() if name not in own}, why_not


def _row(seen: Seen, one: Slice) -> dict[str, Any]:
    curve = seen.record.slice_curve(one.by, one.name)
    told = "" if len(curve) < 2 else f"on validation from {wording.value(float(curve[0]))} to {wording.value(float(curve[-1]))}"
    trend = charts.sparkline(curve, told) if told and one.by != "found" and float(np.nanmax(curve)) <= 1 else None
    return {"slice": one, "trend": trend, "name": one.name if one.by in ("found", CLASS) else f"{one.by} {one.name}"}


def _said(clear: list[Slice], shares: bool) -> str:
    if not clear:
        return "No part stands out as worse than the whole once the number of parts is taken into account."
    worst = max(clear, key=lambda one: abs(one.gap) * one.size**0.5)  # how much of all errors it explains, not how extreme it is
    name = worst.name if worst.by == "found" else f"{worst.by} “{worst.name}”"
    score = f"{wording.percent(worst.score)} right" if shares else f"a mean absolute error of {wording.value(worst.score)}"
    more = f", and {wording.plural(len(clear) - 1, 'other part')} below" if len(clear) > 1 else ""
    return f"Stands out: {name}, {wording.plural(worst.size, 'example')}, {score}{more}."
