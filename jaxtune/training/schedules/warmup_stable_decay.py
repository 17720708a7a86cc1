"""Climb, stay, fall: the long middle does not depend on where the phase ends."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from jaxtune.training.schedules.base import Amount, steps_of
from jaxtune.training.schedules.shapes import PeakToEnd

CURVES = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


class WarmupStableDecay(PeakToEnd):
    """The peak after the warm-up, and in the last part of the phase a fall to `end` (Hu et al. 2024, MiniCPM)."""

    decay: Amount = Field(
        default=0.2, gt=0, description="The last part: below 1 a fraction of the phase's steps, from 1 on a number of steps."
    )
    curve: Literal["linear", "cosine", "sqrt"] = Field(default="sqrt", description="How it falls; sqrt is 1 - sqrt(progress).")

    def inside(self, step: int, total: int) -> float:
        falling = steps_of(self.decay, total)
        into = step - (total - falling)
        if into <= 0:
            return super().inside(step, total)
        return self.end + (self.peak - self.end) * CURVES[self.curve](into / falling)

    def after(self, step: int, total: int) -> float:
        return self.peak

    def problems(self, total: int) -> list[str]:
        found = super().problems(total)
        warm, falling = steps_of(self.warmup, total), steps_of(self.decay, total)
        if warm + falling > total > warm:
            found.append(f"schedule: warmup {warm} and decay {falling} steps together are more than the phase's {total}. Write fewer")
        return found
