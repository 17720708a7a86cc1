"""Up and down once, both along half a cosine (Smith and Topin 2019)."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from jaxtune.training.schedules.base import Amount, PositiveRate, Rate, Schedule, steps_of


class OneCycle(Schedule):
    """From `start` x peak up to the peak, then down to `end` x peak."""

    peak: PositiveRate = Field(description="The highest learning rate.")
    rise: Amount = Field(
        default=0.3, description="How long it climbs: below 1 a fraction of the phase's steps, from 1 on a number of steps."
    )
    start: Annotated[float, Field(gt=0, le=1)] = Field(default=0.04, description="The first step's rate, as a share of the peak.")
    end: Annotated[Rate, Field(le=1)] = Field(default=4e-6, description="The rate at the end of the phase, as a share of the peak.")

    def inside(self, step: int, total: int) -> float:
        rise = steps_of(self.rise, total)
        if step < rise:
            low, progress = self.start, 1.0 - step / rise
        else:
            low, progress = self.end, (step - rise) / (total - rise)
        return self.peak * (low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def problems(self, total: int) -> list[str]:
        found = super().problems(total)
        rise = steps_of(self.rise, total)
        if rise >= total > 0:
            found.append(f"schedule.rise: {rise} steps, but the phase has only {total}; the peak would never be reached. Write fewer")
        return found
