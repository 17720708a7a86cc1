"""The picture of a range test: loss over rate, seed by seed and smoothed, what was read off it, and the race below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from jaxtune.evaluation.charts import Line, Mark, Panel
from jaxtune.evaluation.log_charts import log_curves
from jaxtune.selection.lr_advice import Advice
from jaxtune.selection.race import Race
from jaxtune.selection.rate_rule import Reading

if TYPE_CHECKING:
    from jaxtune.selection.lr_test import RangeTest

WIDTH = 680


def plot(measured: RangeTest, reading: Reading, race: Race | None, advice: Advice) -> Markup:
    """Panels over a logarithmic axis of rates; the description is what a screen reader says."""
    raw = [Line("each batch", measured.rates, row, "raw", legend=number == 0) for number, row in enumerate(measured.losses)]
    lines = list(raw)
    curve = measured.curve
    if curve is not None:
        if len(curve.seeds) > 1:
            lines += [Line("between seeds", curve.rates, curve.mean + sign * curve.spread, "rate", legend=sign > 0) for sign in (1, -1)]
        lines.append(Line("smoothed", curve.rates, curve.mean, "validation"))
    panels = [Panel("Training loss while the rate rises", lines)]
    if race is not None:
        rates = np.array([racer.rate for racer in race.racers])
        seeds = np.array([racer.losses for racer in race.racers]).T
        mean = np.array([racer.mean for racer in race.racers])
        raced = [Line("each seed", rates, finite(row), "raw", legend=number == 0) for number, row in enumerate(seeds)]
        panels.append(
            Panel(f"Validation loss after {race.steps} steps", [*raced, Line("mean", rates, finite(mean), "validation", dots=True)])
        )
    marks = []
    if advice.rate is not None:
        marks.append(Mark(advice.rate, f"{'suggested' if reading.clear else 'hint'} {advice.rate:.1e}", "best"))
    if reading.steepest is not None:
        marks.append(Mark(reading.steepest, f"steepest {reading.steepest:.1e}", "phase"))
    if reading.largest_stable is not None:
        marks.append(Mark(reading.largest_stable, f"lowest {reading.largest_stable:.1e}", "phase"))
    description = f"Training loss over learning rate from {measured.rates[0]:.1e} to {measured.rates[-1]:.1e}: {advice.sentence}"
    return log_curves(panels, marks, WIDTH, description, axis="learning rate")


def finite(values: np.ndarray) -> np.ndarray:
    """What broke is left out of the picture."""
    return np.where(np.isfinite(values), values, np.nan)
