"""What the model wrote at the first and at the last evaluation, side by side: the scores of all sampled rows, and the first few in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.core.files import Rows
from jaxtune.core.printable import printable
from jaxtune.evaluation import wording
from jaxtune.evaluation.bootstrap import Interval, draw
from jaxtune.evaluation.record import number
from jaxtune.evaluation.sections.seen import Seen

FILE = "samples.jsonl"
SHOWN = 5
PROMPT_CHARACTERS, ANSWER_CHARACTERS = 400, 600
DRAWS = 1000

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A score over all sampled rows, before and after; the interval is of the difference, row by row."""

    name: str
    first: float
    last: float
    interval: Interval | None


def samples(seen: Seen) -> dict[str, Any]:
    """`samples`: None where the run generated nothing."""
    told: dict[int, dict[int, Row]] = {}
    for row in Rows(seen.record.folder / FILE).read():
        told.setdefault(row["step"], {})[row["row"]] = row  # of a row told twice, after a resume, the later word holds
    if not told:
        return {"samples": None}
    first, last = min(told), max(told)
    rows = [row for row in told[last] if row in told[first]]
    if not rows:
        return {"samples": None}
    before, after = [told[first][row] for row in rows], [told[last][row] for row in rows]
    return {
        "samples": {
            "steps": [_at(first)] if first == last else [_at(first), _at(last)],
            "count": wording.plural(len(rows), "row"),
            "changes": _changes(before, after, compared=first != last),
            "ended": [float(np.mean([row["ended"] for row in part])) for part in ((after,) if first == last else (before, after))],
            "list": [_pair(old, new, both=first != last) for old, new in list(zip(before, after, strict=True))[:SHOWN]],
        }
    }


def _at(step: int) -> str:
    return "before training" if step == 0 else f"at step {step:,}"


def _changes(before: Sequence[Row], after: Sequence[Row], *, compared: bool) -> list[Change]:
    found = []
    for name in after[0]["scores"]:
        first, last = (np.array([number(row["scores"][name]) for row in part]) for part in (before, after))
        interval = None
        if compared and len(first) > 1:
            means = np.concatenate([weights @ (last - first) for weights in draw(len(first), DRAWS, 0)]) / len(first)
            interval = Interval(*np.quantile(means, [0.025, 0.975]).tolist())
        found.append(Change(_name(name), float(first.mean()), float(last.mean()), interval))
    return found


def _pair(before: Row, after: Row, *, both: bool) -> dict[str, Any]:
    return {
        "row": after["row"],
        "prompt": printable(after["prompt"], PROMPT_CHARACTERS),
        "reference": printable(after["reference"], ANSWER_CHARACTERS),
        "answers": [_answer(row) for row in ((before, after) if both else (after,))],
    }


def _answer(row: Row) -> dict[str, Any]:
    scores = ", ".join(f"{_name(name)} {wording.value(number(value))}" for name, value in row["scores"].items())
    return {"text": printable(row["generated"], ANSWER_CHARACTERS), "scores": scores, "ended": row["ended"]}


def _name(score: str) -> str:
    return printable(wording.metric(score), 60)
