"""Curves over a logarithmic axis, such as losses over learning rates: the panels of `charts`, other ticks below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from jaxtune.evaluation import charts
from jaxtune.evaluation.charts import LEFT, RIGHT, Mark, Panel, Scale


def log_curves(
    panels: Sequence[Panel], marks: Sequence[Mark], width: int, description: str, *, axis: str, panel_height: int = 190
) -> Markup:
    """Panels under each other over one axis of positive numbers. Marks have a row of words each, so that near ones stay readable.

    Args:
        axis: what the numbers of the axis are.
    """
    known = np.concatenate([line.x for panel in panels for line in panel.lines])
    low, high = math.log10(known.min()), math.log10(known.max())
    air = max(0.02 * (high - low), 0.01)
    x = Scale(low - air, high + air, LEFT, width - RIGHT)
    head, foot, gap, row = 10 + 15 * len(marks), 34, 34, 15
    height = head + len(panels) * (panel_height + gap) - gap + 22 + foot
    bottom = height - foot
    parts: list[str] = []
    for tick, label, named in powers(x.low, x.high):
        parts.append(charts._line(x(tick), bottom, x(tick), bottom + (5 if named else 3), "grid"))
        if named:
            parts.append(charts._text(x(tick), bottom + 17, label, "middle"))
    top = head + 22
    for panel in panels:
        for mark in marks:
            at = x(math.log10(mark.x))
            parts.append(charts._line(at, top - 2, at, top + panel_height, mark.style))
        moved = replace(panel, lines=[replace(line, x=np.log10(line.x), dots=False) for line in panel.lines])
        parts += charts._panel(moved, x, top, panel_height, ())
        parts += dots(panel, moved, x, top, panel_height)
        top += panel_height + gap
    for number, mark in enumerate(marks):
        at = x(math.log10(mark.x))
        left = at > width * 0.6
        anchor, style = "end" if left else "start", "best" if mark.style == "best" else ""
        parts.append(charts._text(at + (-4 if left else 4), 12 + row * number, mark.text, anchor, style))
        parts.append(charts._line(at, 3 + row * number, at, head + 20, mark.style))
    parts.append(charts._text(width - RIGHT, bottom + 31, axis, "end"))
    return charts.svg(parts, width, height, description)


def dots(panel: Panel, moved: Panel, x: Scale, top: float, height: float) -> list[str]:
    """A dot with its numbers for each point of the lines that want them."""
    y = Scale(*charts._range(moved), top + height, top)
    return [
        charts._dot(x(math.log10(at)), y(value), 3.2, "dot", f"{at:.2g}: {value:.4g}")
        for line in panel.lines
        if line.dots
        for at, value in zip(line.x.tolist(), line.y.tolist(), strict=True)
        if math.isfinite(value) and y.low <= value <= y.high
    ]


def powers(low: float, high: float) -> list[tuple[float, str, bool]]:
    """(log10, label, whether it is written) of the ticks between two logarithms: powers of ten, and their multiples, which are written too
    where there are few powers."""
    whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    few = len(whole) < 3
    every = max(1, math.ceil(len(whole) / 8))
    ticks = [(float(power), f"1e{power}", number % every == 0) for number, power in enumerate(whole)]
    if high - low <= 8:
        for power in range(math.floor(low), math.ceil(high)):
            found = [(power + math.log10(factor), factor) for factor in range(2, 10)]
            ticks += [(at, f"{factor}e{power}", few and factor in (2, 5)) for at, factor in found if low <= at <= high]
    return sorted(ticks)
