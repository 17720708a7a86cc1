"""A rate for each stretch of the phase."""

from __future__ import annotations

import bisect
import itertools
from typing import Self

from pydantic import Field, model_validator

from jaxtune.training.schedules.base import Amount, Rate, WarmedSchedule, steps_of


class Piecewise(WarmedSchedule):
    """`rates[0]` up to the first boundary, `rates[1]` from there, and so on."""

    rates: tuple[Rate, ...] = Field(min_length=1, description="One learning rate per stretch.")
    boundaries: tuple[Amount, ...] = Field(
        default=(),
        description="Where the next rate starts: below 1 a fraction of the phase's steps, from 1 on a step number. One fewer than rates.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.rates) != len(self.boundaries) + 1:
            raise ValueError(f"{len(self.rates)} rates need {len(self.rates) - 1} boundaries, found {len(self.boundaries)}")
        return self

    def inside(self, step: int, total: int) -> float:
        warm = steps_of(self.warmup, total)
        rate = self.rates[bisect.bisect_right(self._starts(total), max(step, warm))]
        return rate * (step + 1) / (warm + 1) if step < warm else rate

    def after(self, step: int, total: int) -> float:
        raise AssertionError("boundaries count from the start of the phase, so `inside` does not split off the warm-up")

    def problems(self, total: int) -> list[str]:
        found = super().problems(total)
        starts = self._starts(total)
        if any(b <= a for a, b in itertools.pairwise([0, *starts])):
            found.append(f"schedule.boundaries: in a phase of {total} steps these are the steps {starts}; expected rising numbers above 0")
        if starts and starts[-1] >= total:
            found.append(f"schedule.boundaries: step {starts[-1]} is outside a phase of {total} steps; the last rate would never be used")
        return found

    def _starts(self, total: int) -> list[int]:
        return [steps_of(boundary, total) for boundary in self.boundaries]
