"""From a range test and a race to one rate, written as the settings of the experiment's own schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtune.selection.race import FACTOR, Race, highest_rate
from jaxtune.selection.rate_rule import Reading, two_digits
from jaxtune.training.schedules.base import Schedule
from jaxtune.training.schedules.piecewise import Piecewise
from jaxtune.training.schedules.shapes import PeakToEnd

NEIGHBOURS = 1.1 * FACTOR  # the range test and the race agree when their rates are at most so many times apart


@dataclass(frozen=True)
class Advice:
    """
    Attributes:
        rate: the rate to take; None when there is no clear answer at all.
        agree: whether range test and race agree; None without one of them.
        overrides: `key=value` words that put the rate into the experiment; empty where the schedule has no such setting.
        sentence: the whole answer.
    """

    rate: float | None
    agree: bool | None
    overrides: tuple[str, ...]
    sentence: str


def advise(reading: Reading, race: Race | None, no_race: str, schedule: Schedule, phase: int, total: int) -> Advice:
    """The geometric mean of the range test's rate and the race's best where they agree: two guesses of the same thing, each half a power of
    ten wide. Else the race's, which ran the whole schedule and was judged on examples it had not trained on; without a race the range test's.
    """
    best = None if race is None else race.best
    named = f"the range test suggests {reading.rate:.1e}" if reading.clear and reading.rate else ""
    agree = None
    if named and race is not None and best is None:
        rate, agree, sentence = None, False, f"{named}, but every rate of the race broke: no clear answer; try lower rates"
    elif named and race is not None and best is not None:
        assert reading.rate is not None
        apart = max(best, reading.rate) / min(best, reading.rate)
        agree = apart <= NEIGHBOURS
        rate = two_digits(math.sqrt(reading.rate * best)) if agree else best
        found = race.of(reading.rate)
        noise = "" if found.rate == best else f" ({'beyond' if found.clearly else 'within'} the noise between seeds)"
        word = (
            f"they agree on about {rate:.1e}"
            if agree
            else f"they disagree by a factor of {apart:.2g}; take the race's, and a longer run of both to be sure"
        )
        sentence = f"{named}, the race's lowest validation loss is at {best:.1e}{noise}: {word}"
    elif named:
        rate, sentence = reading.rate, f"{named}; {no_race}"
    elif best is not None:
        rate, agree = best, None
        sentence = f"no clear answer from the range test ({'; '.join(reading.reasons)}); the race's lowest validation loss is at {best:.1e}: a hint"
    else:
        rate, sentence = None, f"no clear answer: {'; '.join(reading.reasons)}"
    overrides = () if rate is None else override_words(schedule, rate, phase, total)
    if rate is not None and not overrides:
        factor = rate / highest_rate(schedule, total)
        sentence += f". The schedule has no setting for its highest rate: multiply all its rates by {factor:.2g}"
    return Advice(rate, agree, overrides, sentence)


def override_words(schedule: Schedule, rate: float, phase: int, total: int) -> tuple[str, ...]:
    """The settings that make `rate` the highest of a schedule and keep its shape; empty for one that has no such setting."""
    where = f"phases.{phase}.optimizer.schedule"
    return tuple(f"{where}.{name}={written(value)}" for name, value in settings(schedule, rate, total).items())


def settings(schedule: Schedule, rate: float, total: int) -> dict[str, Any]:
    factor = rate / highest_rate(schedule, total)
    if isinstance(schedule, Piecewise):
        return {"rates": [two_digits(each * factor) for each in schedule.rates]}
    if isinstance(schedule, PeakToEnd) and schedule.end > 0:
        return {"peak": rate, "end": two_digits(schedule.end * factor)}
    return next(({name: rate} for name in ("peak", "rate") if isinstance(getattr(schedule, name, None), float)), {})


def written(value: float | list[float]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return "0.0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else str(value)
