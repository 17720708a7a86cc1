"""The rate falls with the square root of the step."""

from __future__ import annotations

import math

from pydantic import Field

from jaxtune.training.schedules.base import Amount, PositiveRate, Schedule, steps_of


class InverseSqrt(Schedule):
    """A straight climb to `peak` over the warm-up, then peak x sqrt(warmup / step): independent of how long the phase is."""

    peak: PositiveRate = Field(description="The learning rate at the end of the warm-up.")
    warmup: Amount = Field(
        description="Climb to the peak, and time scale of the fall: below 1 a fraction of the phase's steps, from 1 on a number of steps."
    )

    def inside(self, step: int, total: int) -> float:
        warm = max(1, steps_of(self.warmup, total))
        return self.peak * min((step + 1) / (warm + 1), math.sqrt(warm / max(step, warm)))

    def problems(self, total: int) -> list[str]:
        found = super().problems(total)
        warm = steps_of(self.warmup, total)
        if warm >= total > 0:
            found.append(f"schedule.warmup: {warm} steps, but the phase has only {total}; the peak would never be reached. Write fewer")
        if warm < 1:
            found.append(f"schedule.warmup: {self.warmup} of {total} steps is none; inverse_sqrt needs at least 1 as its time scale")
        return found
