"""Charts of a search: how the best value came about, and which settings go with which value (parallel coordinates)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxtune.evaluation import charts
from jaxtune.evaluation.charts import LEFT, RIGHT, Scale
from jaxtune.search.ledger import Record
from jaxtune.search.parameters import Parameter, label

MOST_AXES = 8
HALO = '<text style="paint-order: stroke; stroke: var(--paper); stroke-width: 3px"'  # a label stays legible over the lines
DRAWN = 400  # trials; of very many the best and an even sample of the others


def history(records: Sequence[Record], metric: str, higher_is_better: bool, width: int, *, height: int = 190) -> Markup:
    """Each trial's value, full where it trained to its end; the line is the best so far among those."""
    valued = [record for record in records if record.value is not None and math.isfinite(record.value)]
    values = np.array([record.value for record in valued], float)
    low, high = charts.extent(np.quantile(values, [0.0, 1.0]) if len(values) < 20 else clipped(values, higher_is_better))
    last = max([record.number for record in records], default=1)
    x, y = Scale(0, max(last, 1), LEFT, width - RIGHT), Scale(low, high, 22 + height, 22)
    parts = [charts._text(0, 11, metric, style="title")]
    for tick, text in charts.labelled(low, high, 4):
        parts += [charts._line(LEFT, y(tick), width - RIGHT, y(tick), "grid"), charts._text(LEFT - 6, y(tick) + 4, text, "end")]
    best: float | None = None
    points: list[tuple[float, float]] = []
    for record in valued:
        if record.state == "complete" and record.value is not None:
            better = max if higher_is_better else min
            best = record.value if best is None else better(best, record.value)
            if points:
                points.append((x(record.number), points[-1][1]))
            points.append((x(record.number), y(min(max(best, low), high))))
    if points:
        points.append((x(last), points[-1][1]))
        parts.append(charts._polyline(points, "validation"))
    for record in valued:
        assert record.value is not None
        at = (x(record.number), y(min(max(record.value, low), high)))
        tip = f"trial {record.number}: {record.value:.4g}" + ("" if record.state == "complete" else f", stopped after {record.steps} steps")
        parts.append(charts._dot(*at, 3.4 if record.state == "complete" else 2.4, "dot" if record.state == "complete" else "point", tip))
    for tick, text in charts.labelled(0, max(last, 1), max(3, width // 110), whole=True):
        parts.append(charts._text(x(tick), height + 38, text, "middle"))
    parts.append(charts._text(width - RIGHT, height + 54, "trial; pale: stopped early", "end"))
    said = "no trial has a value" if best is None else f"the best value is {best:.4g}"
    return charts.svg(parts, width, height + 58, f"{metric} of {len(valued)} trials in their order; {said}.")


def parallel(
    records: Sequence[Record], keys: Sequence[str], names: Mapping[str, str], parameters: Mapping[str, Parameter], metric: str,
    higher_is_better: bool, width: int, *, height: int = 250,
) -> Markup:  # fmt: skip
    """One axis per setting and one for the value, one line per trial; the best tenth in colour. A setting a trial has not is left out."""
    valued = [record for record in records if record.value is not None and math.isfinite(record.value)]
    valued.sort(key=lambda record: float(record.value or 0.0), reverse=not higher_is_better)  # the best are drawn last, on top
    if len(valued) > DRAWN:
        valued = [valued[i] for i in np.linspace(0, len(valued) - DRAWN // 4 - 1, DRAWN - DRAWN // 4).astype(int)] + valued[-DRAWN // 4 :]
    keys = list(keys)[:MOST_AXES]
    values = np.array([record.value for record in valued], float)
    low, high = charts.extent(clipped(values, higher_is_better))
    top, bottom = 40, 40 + height
    spots = np.linspace(24, width - 52, len(keys) + 1)
    axes = [axis(parameters[key], bottom, top) for key in keys]
    last = Scale(low, high, bottom, top)
    parts: list[str] = []
    good = max(1, round(0.1 * len(valued)))
    for rank, record in enumerate(valued):
        assert record.value is not None
        points = [
            (float(spot), place(record.settings[key]))
            for spot, key, (place, _) in zip(spots, keys, axes, strict=False)
            if key in record.settings
        ]
        points.append((float(spots[-1]), last(min(max(record.value, low), high))))
        strong = rank >= len(valued) - good
        line = charts._polyline(points, "validation" if strong else "train")
        shade = 0.95 if strong else 0.12 + 0.33 * rank / max(len(valued), 1)
        parts.append(
            line.replace("<polyline", f'<polyline stroke-opacity="{shade:.2f}"', 1).replace(
                "/>", f"><title>{tip_of(record)}</title></polyline>"
            )
        )
    for number, (spot, key) in enumerate(zip(spots, keys, strict=False)):
        parts.append(charts._line(spot, top, spot, bottom, "grid"))
        parts.append(charts._text(max(spot - 20, 0), 12 if number % 2 == 0 else 26, names[key], style="title"))
        for at, text in axes[number][1]:
            parts.append(charts._text(spot + 4, at + 4, text).replace("<text", HALO, 1))
    parts.append(charts._line(spots[-1], top, spots[-1], bottom, "zero"))
    parts.append(charts._text(width, 12 if len(keys) % 2 == 0 else 26, metric, "end", "title"))
    for tick, text in charts.labelled(low, high, 5):
        parts.append(charts._text(spots[-1] + 5, last(tick) + 4, text))
    described = (
        f"Settings of {len(valued)} trials beside their {metric}; the best tenth stands out. Axes: {', '.join(names[key] for key in keys)}."
    )
    return charts.svg(parts, width, bottom + 16, described)


def axis(parameter: Parameter, bottom: float, top: float) -> tuple[Any, list[tuple[float, str]]]:
    """(value -> height, [(height, label)]) of one setting's axis."""
    choices = getattr(parameter, "choices", None)
    if choices is not None:
        labels = [label(choice) for choice in choices]
        scale = Scale(-0.5, len(labels) - 0.5, bottom, top)
        return (lambda value: scale(labels.index(label(value)))), [(scale(i), shortened(text)) for i, text in enumerate(labels)]
    ends: Any = parameter
    if ends.log:
        scale = Scale(math.log(ends.low), math.log(ends.high), bottom, top)
        return (lambda value: scale(math.log(value))), [(scale(math.log(end)), f"{end:.3g}") for end in (ends.low, ends.high)]
    scale = Scale(ends.low, ends.high, bottom, top)
    return scale, [(scale(end), f"{end:.3g}") for end in (ends.low, ends.high)]


def clipped(values: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Without the worst outliers, which would press all others together: from the best value three quartile distances down."""
    if not len(values):
        return values
    best = values.max() if higher_is_better else values.min()
    reach = 3 * float(np.median(np.abs(values - best))) or 1.0
    return np.clip(values, best - reach, best + reach)


def shortened(text: str, most: int = 18) -> str:
    text = text.strip('"')
    return text if len(text) <= most else text[: most - 1] + "…"


def tip_of(record: Record) -> Markup:
    from markupsafe import escape

    settings = ", ".join(f"{key.split('.')[-1]} {label(value)}" for key, value in record.settings.items())
    return escape(f"trial {record.number}: {record.value:.4g} ({settings})")
