"""Charts as small inline SVG: stacked curves over steps, reliability, scatter, histogram, sparkline.

Our own, because a page that must not load anything, follows the reader's theme and is read aloud needs shapes with class names and
a sentence, not a picture; matplotlib's SVG is fifty times the bytes and knows neither theme nor screen reader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from jaxtune.evaluation.analysis import Reliability, wilson

# Colours are variables of the page (templates/report.html); the last rules give them to a file that stands alone.
STYLE = """
.chart { display: block; width: 100%; height: auto; overflow: visible; font: 11.5px var(--sans); }
.chart text { fill: var(--muted); }
.chart .title { fill: var(--ink); font-weight: 600; font-size: 12.5px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .zero { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; fill: none; }
.chart path, .chart polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { stroke: var(--train); stroke-width: 1; opacity: .32; }
.chart .train { stroke: var(--train); stroke-width: 1.8; }
.chart .validation { stroke: var(--accent); stroke-width: 1.8; }
.chart .other { stroke: var(--warm); stroke-width: 1.4; stroke-dasharray: 5 3; }
.chart .rate { stroke: var(--muted); stroke-width: 1.5; }
.chart tspan.train { fill: var(--train); stroke: none; font-weight: 600; }
.chart tspan.validation { fill: var(--accent); stroke: none; font-weight: 600; }
.chart tspan.raw, .chart tspan.rate { fill: var(--muted); stroke: none; opacity: 1; }
.chart .dot { fill: var(--accent); stroke: var(--paper); stroke-width: 1; }
.chart .point { fill: var(--accent); opacity: .45; }
.chart .bar { fill: var(--accent); opacity: .28; }
.chart .spread { stroke: var(--accent); stroke-width: 1.2; opacity: .55; }
.chart .phase { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 2 3; }
.chart .best { stroke: var(--warm); stroke-width: 1.2; }
.chart text.best { fill: var(--warm); stroke: none; font-weight: 600; }
.chart.spark { width: 84px; height: 22px; }
.chart.spark .validation { stroke-width: 1.4; }
.chart .best-dot { fill: var(--warm); stroke: var(--paper); stroke-width: 1.5; }
"""
_ALONE = """
svg { --ink: #1b1f24; --muted: #5b6572; --line: #e4e7eb; --paper: #ffffff; --accent: #0b6b6b; --train: #64748b; --warm: #b4500b;
  --sans: system-ui, sans-serif; background: var(--paper); }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e7eaee; --muted: #9aa5b1; --line: #2b3139; --paper: #14171b; --accent: #4cc9bd; --train: #94a3b8; --warm: #f2a65a; }
}
"""
LEFT, RIGHT = 46, 12


@dataclass(frozen=True)
class Line:
    """One curve; `style` is its class: raw, train, validation or rate."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    legend: bool = True
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    lines: Sequence[Line]
    from_zero: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line through all panels; `style` is phase or best."""

    x: float
    text: str
    style: str


@dataclass(frozen=True)
class Scale:
    """Data from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


# -- whole charts -----------------------------------------------------------------------------------------------------------


def curves(panels: Sequence[Panel], marks: Sequence[Mark], width: int, description: str, *, panel_height: int = 128) -> Markup:
    """Panels under each other over one axis of steps."""
    everything = np.concatenate([[0.0, 1.0], *(line.x for panel in panels for line in panel.lines)])
    x = Scale(float(everything.min()), float(everything.max()), LEFT, width - RIGHT)
    head = 30 if any(mark.style == "phase" for mark in marks) else 16 if marks else 4
    foot, gap = 34, 34
    height = head + len(panels) * (panel_height + gap) - gap + 22 + foot
    parts: list[str] = []
    top = head + 22
    bottom = height - foot
    parts += _mark_texts(marks, x, width, head - 3)
    for panel in panels:
        for mark in marks:
            if mark.style == "best" or mark.x > x.low:  # the first phase begins at the axis
                parts.append(_line(x(mark.x), top - 2, x(mark.x), top + panel_height, mark.style))
        parts += _panel(panel, x, top, panel_height, marks)
        top += panel_height + gap
    for tick, label in labelled(x.low, x.high, max(3, width // 110), whole=True):
        parts.append(_text(x(tick), bottom + 16, label, "middle"))
    parts.append(_text(width - RIGHT, bottom + 30, "optimizer steps", "end"))
    return svg(parts, width, height, description)


def reliability_diagram(found: Reliability, width: int, description: str, *, after: Reliability | None = None) -> Markup:
    """Accuracy over confidence with 95 % intervals, the diagonal, and how many answers each bin holds; `after` is a second, dashed curve."""
    side = width - LEFT - RIGHT
    foot_height, bottom = 46, 26 + side
    x, y = Scale(0, 1, LEFT, LEFT + side), Scale(0, 1, bottom, bottom - side)
    parts = [_text(0, 11, "accuracy", style="title")]
    for tick, label in labelled(0, 1, 5):
        parts += [_line(LEFT, y(tick), LEFT + side, y(tick), "grid"), _text(LEFT - 6, y(tick) + 4, label, "end")]
    parts.append(_line(x(0), y(0), x(1), y(1), "zero"))
    filled = np.flatnonzero(found.count)
    low, high = wilson(found.accuracy[filled] * found.count[filled], found.count[filled])
    centres = [(x(float(found.confidence[i])), y(float(found.accuracy[i]))) for i in filled]
    for (cx, _), bar_low, bar_high in zip(centres, low, high, strict=True):
        parts.append(_line(cx, y(float(bar_low)), cx, y(float(bar_high)), "spread"))
    if after is not None:
        others = np.flatnonzero(after.count)
        parts.append(_polyline([(x(float(after.confidence[i])), y(float(after.accuracy[i]))) for i in others], "other"))
    parts.append(_polyline(centres, "validation"))
    for i, (cx, cy) in zip(filled, centres, strict=True):
        tip = f"{found.count[i]} answers, confidence {found.confidence[i]:.2f}, right {found.accuracy[i]:.2f}"
        parts.append(_dot(cx, cy, 3.4, "dot", tip))
    base = bottom + foot_height + 22
    largest = max(int(found.count.max()), 1)
    bins = len(found.count)
    for i in filled:
        tall = max(1.0, float(found.count[i]) / largest * foot_height)
        parts.append(_bar(x(i / bins) + 0.5, base - tall, x(1 / bins) - x(0) - 1, tall))
    parts.append(_line(LEFT, base, LEFT + side, base, "grid"))
    parts.append(_text(LEFT - 6, base - foot_height + 10, f"{largest}", "end"))
    for tick, label in labelled(0, 1, 5):
        parts.append(_text(x(tick), base + 15, label, "middle"))
    parts.append(_text(LEFT + side, base + 30, "confidence; bars: answers per bin", "end"))
    return svg(parts, width, base + 34, description)


def scatter(truth: np.ndarray, predicted: np.ndarray, width: int, description: str, *, most: int = 1500) -> Markup:
    """Predicted over true numbers with the diagonal; of very many points an even sample."""
    chosen = np.linspace(0, len(truth) - 1, min(most, len(truth))).astype(int)
    low, high = extent(np.concatenate([truth, predicted]))
    side = width - LEFT - RIGHT
    x, y = Scale(low, high, LEFT, LEFT + side), Scale(low, high, 22 + side, 22)
    parts = [_text(0, 11, "predicted", style="title")]
    for tick, label in labelled(low, high, 5):
        parts += [_line(LEFT, y(tick), LEFT + side, y(tick), "grid"), _text(LEFT - 6, y(tick) + 4, label, "end")]
        parts.append(_text(x(tick), side + 38, label, "middle"))
    parts.append(_line(x(low), y(low), x(high), y(high), "zero"))
    parts += [_dot(x(float(truth[i])), y(float(predicted[i])), 2.6, "point") for i in chosen]
    parts.append(_text(LEFT + side, side + 54, "true", "end"))
    return svg(parts, width, side + 58, description)


def histogram(values: np.ndarray, width: int, description: str, *, axis: str, height: int = 150, bins: int = 25) -> Markup:
    """How often values occur, with a line at 0."""
    low, high = extent(np.append(values, 0.0))
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    x, y = Scale(low, high, LEFT, width - RIGHT), Scale(0, float(max(counts.max(), 1)), 22 + height, 22)
    parts = [_text(0, 11, "examples", style="title")]
    for tick, label in labelled(0, y.high, 3, whole=True):
        parts += [_line(LEFT, y(tick), width - RIGHT, y(tick), "grid"), _text(LEFT - 6, y(tick) + 4, label, "end")]
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            parts.append(_bar(x(left) + 0.5, y(float(count)), x(right) - x(left) - 1, y(0) - y(float(count))))
    parts.append(_line(x(0), 22, x(0), 22 + height, "zero"))
    for tick, label in labelled(low, high, 5):
        parts.append(_text(x(tick), height + 38, label, "middle"))
    parts.append(_text(width - RIGHT, height + 54, axis, "end"))
    return svg(parts, width, height + 58, description)


def sparkline(values: np.ndarray, description: str, *, width: int = 84, height: int = 22) -> Markup:
    """A curve the size of a word, on a scale of 0 to 1."""
    x, y = Scale(0, max(len(values) - 1, 1), 2, width - 4), Scale(0, 1, height - 3, 3)
    points = [(x(i), y(float(value))) for i, value in enumerate(values) if math.isfinite(value)]
    end = [_dot(*points[-1], 2.2, "dot")] if points else []
    return svg([_polyline(points, "validation"), *end], width, height, description, style="chart spark")


def alone(drawing: Markup) -> str:
    """The same drawing as a file of its own."""
    text = str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    start = text.index(">") + 1
    return f"{text[:start]}<style>{STYLE}{_ALONE}</style>{text[start:]}\n"


# -- parts ------------------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, x: Scale, top: float, height: float, marks: Sequence[Mark]) -> list[str]:
    low, high = _range(panel)
    y = Scale(low, high, top + height, top)
    parts = []
    for tick, label in labelled(low, high, 4):
        parts += [_line(x.start, y(tick), x.end, y(tick), "grid"), _text(x.start - 6, y(tick) + 4, label, "end")]
    named = [line for line in panel.lines if line.legend]
    legend = "" if len(named) < 2 else " ".join(f'<tspan dx="9" class="{line.style}">{escape(line.name)}</tspan>' for line in named)
    parts.append(f'<text x="0" y="{top - 10:.1f}"><tspan class="title">{escape(panel.title)}</tspan> {legend}</text>')
    # An inner svg cuts off what leaves the panel (a spike of the loss); it needs no id, unlike a clip path.
    pixels = int(x.end - x.start)
    inner = [_path(line, x, y, pixels) for line in panel.lines]
    parts.append(
        f'<svg x="0" y="{top - 4:.1f}" width="{x.end + RIGHT:.1f}" height="{height + 8:.1f}" '
        f'viewBox="0 {top - 4:.1f} {x.end + RIGHT:.1f} {height + 8:.1f}">{"".join(inner)}</svg>'
    )
    best = {mark.x for mark in marks if mark.style == "best"}
    for line in panel.lines:
        shown = list(zip(line.x.tolist(), line.y.tolist(), strict=True)) if line.dots else []
        for step, value in shown:
            if math.isfinite(value) and low <= value <= high and (len(shown) <= 80 or step in best):
                here = step in best
                parts.append(_dot(x(step), y(value), 4.2 if here else 2.8, "best-dot" if here else "dot", f"step {step:g}: {value:.4g}"))
    return parts


def _range(panel: Panel) -> tuple[float, float]:
    """Wide enough for all curves but the raw one, of which the wildest 2 % may leave the panel."""
    values = [line.y[np.isfinite(line.y)] for line in panel.lines]
    kept = [np.quantile(v, [0.02, 0.98]) if line.style == "raw" and len(v) else v for line, v in zip(panel.lines, values, strict=True)]
    joined = np.concatenate([*kept, np.zeros(1 if panel.from_zero else 0)])
    return extent(joined)


def extent(values: np.ndarray) -> tuple[float, float]:
    """From the least to the greatest finite value with a little air; never of no width."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    air = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
    return (0.0 if low == 0 else low - air), high + air


def labelled(low: float, high: float, count: int, *, whole: bool = False) -> list[tuple[float, str]]:
    """(number, text) for about `count` round numbers (1, 2 or 5 times a power of ten) inside [low, high]; all with as many decimals."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [number * step for number in range(first, last + 1)]
    if max(abs(low), abs(high)) >= 1e6 or step < 1e-3:
        return [(value, _scientific(value)) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:,.{decimals}f}") for value in values]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def smooth(values: np.ndarray, span: float) -> np.ndarray:
    """Moving average with weights that fall by 1/e over `span` steps, unbiased at the start; gaps stay gaps and count for nothing."""
    keep = math.exp(-1.0 / max(span, 1e-9))
    total, weight, out = 0.0, 0.0, []
    for value in values.tolist():
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight if weight and math.isfinite(value) else math.nan)
    return np.array(out)


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` points: of every stretch its least and its greatest, so that spikes stay."""
    if len(x) <= most:
        return x, y
    chosen: list[int] = []
    for part in np.array_split(np.arange(len(x)), most // 2):
        values = y[part]
        if np.isfinite(values).any():
            chosen += sorted({int(part[np.nanargmin(values)]), int(part[np.nanargmax(values)])})
        else:
            chosen.append(int(part[0]))
    return x[chosen], y[chosen]


def _path(line: Line, x: Scale, y: Scale, most: int) -> str:
    """Stretches of finite values, joined by lines."""
    xs, ys = thin(line.x, line.y, most)
    parts, pen = [], "M"
    for step, value in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(value):
            parts.append(f"{pen}{x(step):.1f} {y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return f'<path class="{line.style}" d="{"".join(parts)}"/>'


def _mark_texts(marks: Sequence[Mark], x: Scale, width: int, best_row: float) -> list[str]:
    """Phases in the first row where they have room, the best step at `best_row`."""
    parts = []
    free = -math.inf
    for mark in sorted((m for m in marks if m.style == "phase"), key=lambda m: m.x):
        at = x(mark.x)
        if at >= free and at + 6.5 * len(mark.text) <= width:
            parts.append(_text(at + 4, 12, mark.text))
            free = at + 10 + 6.5 * len(mark.text)
    for mark in marks:
        if mark.style == "best":
            left = x(mark.x) > width * 0.6
            parts.append(_text(x(mark.x) + (4 if left else -4), best_row, mark.text, "end" if left else "start", "best"))
    return parts


def svg(parts: Sequence[str], width: float, height: float, description: str, style: str = "chart") -> Markup:
    """`description` is what a screen reader says in place of the drawing."""
    return Markup(
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(description)}">{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _dot(x: float, y: float, radius: float, style: str, tip: str = "") -> str:
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def _bar(x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}"/>'


def _polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    return f'<polyline class="{style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
