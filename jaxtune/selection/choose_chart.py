"""Score over cost for every candidate, with the Pareto front: those that no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from jaxtune.evaluation.bootstrap import Interval
from jaxtune.evaluation.charts import LEFT, RIGHT, Scale, _dot, _line, _text, extent, labelled, svg

HEIGHT = 300
LETTER = 6.8  # width of a letter in the labels, pixels


@dataclass(frozen=True)
class Point:
    """`cost` is above 0; `random` is a candidate without pre-training."""

    name: str
    cost: float
    score: float
    interval: Interval
    random: bool = False


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Cheapest first: each scores more than everything that costs less or the same."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return tuple(front)


def score_against_cost(points: Sequence[Point], width: int, *, measure: str, cost: str) -> Markup:
    """Dots with their intervals over a logarithmic axis of cost; the front is a dashed line and its dots are marked.

    Args:
        measure, cost: what the axes say, with unit.
    """
    front = pareto_front(points)
    low, high = extent(np.array([end for p in points for end in (p.interval.low, p.interval.high)]))
    if measure != "r2":
        low, high = max(low, 0.0), min(high, 1.0)  # an accuracy lies between 0 and 1, its interval need not
    logs = [math.log10(point.cost) for point in points]
    left, right = min(logs) - 0.15, max(logs) + 0.35
    x, y = Scale(left, right, LEFT, width - RIGHT), Scale(low, high, 22 + HEIGHT, 22)
    parts = [_text(0, 11, measure, style="title")]
    for tick, label in labelled(low, high, 5):
        parts += [_line(LEFT, y(tick), width - RIGHT, y(tick), "grid"), _text(LEFT - 6, y(tick) + 4, label, "end")]
    for tick, label in round_costs(10**left, 10**right):
        parts.append(_text(x(math.log10(tick)), HEIGHT + 38, label, "middle"))
    corners = " ".join(f"{x(math.log10(p.cost)):.1f},{y(p.score):.1f}" for p in front)
    parts.append(f'<polyline class="zero" points="{corners}"/>')
    names = short_names([point.name for point in points])
    taken: list[tuple[float, float, float]] = []  # left, right, baseline of the labels so far
    for point in sorted(points, key=lambda point: -point.score):
        at, middle = x(math.log10(point.cost)), y(point.score)
        ends = (y(min(max(point.interval.low, low), high)), y(max(min(point.interval.high, high), low)))
        parts.append(_line(at, ends[0], at, ends[1], "spread"))
        tip = f"{point.name}: {point.score:.3f} ({point.interval.low:.3f} to {point.interval.high:.3f}), {point.cost:.3g} {cost}"
        style, radius = ("best-dot", 4.6) if point in front else ("dot", 3.4)
        parts.append(_dot(at, middle, radius, style, tip))
        parts.append(_label(names[point.name], point.random, at, middle, width, taken))
    parts.append(_text(width - RIGHT, HEIGHT + 54, f"{cost}; dashed: the Pareto front", "end"))
    said = "; ".join(f"{p.name} {p.score:.3f} at {p.cost:.3g}" for p in sorted(points, key=lambda p: -p.score))
    return svg(parts, width, HEIGHT + 58, f"{measure} over {cost}: {said}. Pareto front: {', '.join(p.name for p in front)}.")


def round_costs(low: float, high: float) -> list[tuple[float, str]]:
    """1, 2 and 5 times powers of ten inside [low, high], fewer where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    if len(found) > 8:
        found = [value for value in found if round(math.log10(value), 6).is_integer()]
    return [(value, f"{value:,.10g}" if 1e-3 <= value < 1e6 else f"{value:.0e}") for value in found]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Hub ids and folders by their last part, where these differ; the tips, the tables and the description have the whole names."""
    short = {
        name: name if "://" in name else name[: len("random:") * name.startswith("random:")] + name.rsplit("/", 1)[-1] for name in names
    }
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _label(name: str, quiet: bool, at: float, middle: float, width: int, taken: list[tuple[float, float, float]]) -> str:
    """The name beside its dot, on the side with room, moved down where another name stands; the end of a name that is too long."""
    right, left = width - at - 8, at - 8
    most = int(max(right, left) / LETTER)
    name = name if len(name) <= most else "..." + name[3 - most :]
    length = LETTER * len(name)
    anchor = "start" if length <= right else "end"
    start = at + 8 if anchor == "start" else at - 8 - length
    base = middle + 17  # below: the front runs beside the dot
    while any(start < other_end and other_start < start + length and abs(base - other) < 13 for other_start, other_end, other in taken):
        base += 13
    taken.append((start, start + length, base))
    return _text(at + 8 if anchor == "start" else at - 8, base, name, anchor, "" if quiet else "title")
