"""A comparison in words, and as a page in the look of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.data.sources.base import Records
from jaxtune.evaluation import wording
from jaxtune.evaluation.compare import COSTS, Comparison, Difference
from jaxtune.evaluation.hard_examples import answer, show
from jaxtune.evaluation.pages import fill

LISTED = 10  # fixed and broken examples each


def verdict(found: Comparison) -> list[str]:
    """Sentences: which is better, on what, how many answers changed."""
    best, names = found.best, names_of(found)
    both = f"{wording.value(best.first)} for {names[0]} and {wording.value(best.second)} for {names[1]}"
    between = (
        ""
        if best.interval is None
        else f" (95\u00a0% interval {wording.signed(best.interval.low)} to {wording.signed(best.interval.high)})"
    )
    who = f"{names[1]} is better" if best.is_better else f"{names[0]} is better" if best.is_clear else "There is no clear difference"
    sentences = [f"{who}: {found.split} {wording.metric(best.name)} is {both}, a difference of {wording.signed(best.change)}{between}."]
    shared = wording.plural(len(found.pair[0]), f"shared {found.split} example")
    if found.mcnemar is not None:
        p = "< 0.0001" if found.mcnemar < 1e-4 else f"= {found.mcnemar:.2g}"
        sentences.append(f"Of {shared}, {names[1]} gets {len(found.fixed):,} right that {names[0]} gets wrong, and {len(found.broken):,} the other way (exact McNemar p {p}).")  # fmt: skip
    else:
        sentences.append(f"Of {shared}, {len(found.fixed):,} are predicted better by {names[1]} and {len(found.broken):,} worse.")
    return sentences + [f"Left out: {said}." for said in found.left_out]


def names_of(found: Comparison) -> tuple[str, str]:
    """What the two runs are called; by their whole path when the folders have one name."""
    a, b = found.first.folder, found.second.folder
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    return printable(names[0], 80), printable(names[1], 80)


def changed_examples(found: Comparison, positions: np.ndarray, records: Records | None, limit: int = LISTED) -> list[dict[str, Any]]:
    """Examples as a page lists them: truth, both answers, the record."""
    entries = []
    for position in positions[:limit].tolist():
        (true, first, said_first), (_, second, said_second) = (answer(outcomes, position) for outcomes in found.pair)
        record = show(records, int(found.pair[0].rows[position]), found.first.task)
        entries.append({"shown": record, "true": true, "first": first, "second": second, "said": (said_first, said_second)})
    return entries


def setting(value: Any) -> str:
    """A value of a setting, as YAML would have it."""
    if value is None:
        return "not set"
    if isinstance(value, float):
        return f"{value:g}"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 160)


def costs(found: Comparison) -> list[tuple[str, str, str]]:
    """(what, first, second) in words."""

    def said(name: str, value: float | None) -> str:
        if value is None:
            return "unknown"
        if "seconds" in name:
            return wording.duration(value)
        return wording.memory(value) if "bytes" in name else wording.count(value)

    def kind(name: str) -> str:
        return "count" if name == "examples_per_second" else name

    return [(COSTS.get(name, name).removeprefix("seconds of "), said(kind(name), a), said(kind(name), b)) for name, a, b in found.costs]


def write_page(found: Comparison, path: Path, records: Records | None = None, why_not: str = "") -> Path:
    """Writes the page; the path.

    Args:
        records: of the first run, by row number.
        why_not: why they are not to be had.

    Raises:
        OSError: it cannot be written.
    """
    from jaxtune.core.files import write_whole

    names = names_of(found)
    page = fill(
        "compare.html", names=names, split=found.split, verdict=verdict(found), numbers=_rows(found.numbers, words=True), classes=_rows(found.classes),
        problem=found.first.problem, examples=len(found.pair[0]), has_records=records is not None, why_not=why_not,
        lists=[
            ("fixed", f"Fixed by {names[1]}", len(found.fixed), changed_examples(found, found.fixed, records)),
            ("broken", f"Broken by {names[1]}", len(found.broken), changed_examples(found, found.broken, records)),
        ],
        settings=[(key, setting(a), setting(b)) for key, a, b in found.settings], costs=costs(found), decides=wording.metric(found.best.name),
    )  # fmt: skip
    write_whole(path, page)
    return path


def _rows(found: tuple[Difference, ...], *, words: bool = False) -> list[dict[str, Any]]:
    return [{"name": wording.metric(d.name) if words else d.name, "difference": d} for d in found]
