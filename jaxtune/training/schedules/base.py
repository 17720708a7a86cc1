"""What a schedule is: a host function from step to rate.

The rate travels to the device as a traced scalar, so changing a schedule compiles nothing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

from pydantic import AfterValidator, Field

from jaxtune.core.component import Component


def _whole_from_one(amount: float) -> float:
    if amount >= 1 and amount != int(amount):
        raise ValueError(f"{amount} is neither a fraction below 1 nor a whole number of steps")
    return amount


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_whole_from_one)]
"""A part of a phase: below 1 a fraction of its steps, from 1 on a number of steps."""

Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def steps_of(amount: float, total: int) -> int:
    """An `Amount` in steps."""
    return round(amount * total) if amount < 1 else int(amount)


class Schedule(Component):
    """A learning rate for every step of a phase."""

    def at(self, step: int, total: int) -> float:
        """The learning rate of `step` (from 0, inside the phase) of `total`; from the end of the phase on, its last rate."""
        total = max(total, 1)
        return self.inside(min(step, total - 1), total)

    @abstractmethod
    def inside(self, step: int, total: int) -> float:
        """The learning rate of `step`, where 0 <= step < total."""

    def problems(self, total: int) -> list[str]:
        """What does not fit a phase of `total` steps; [] when all is well. Asked once, before training."""
        probes = sorted({0, total // 2, max(total - 1, 0)})
        rates = {step: self.at(step, total) for step in probes}
        return [
            f"schedule: the rate of step {step} is {rate}; expected a finite number of at least 0"
            for step, rate in rates.items()
            if not (math.isfinite(rate) and rate >= 0)
        ]


class WarmedSchedule(Schedule):
    """A schedule that climbs in a straight line first: step s of W has the share (s + 1) / (W + 1), so that no step is lost at rate 0."""

    warmup: Amount = Field(
        default=0.0, description="Climb to the peak: below 1 a fraction of the phase's steps, from 1 on a number of steps."
    )

    def inside(self, step: int, total: int) -> float:
        warm = steps_of(self.warmup, total)
        if step < warm:
            return self.after(0, max(total - warm, 1)) * (step + 1) / (warm + 1)
        return self.after(step - warm, total - warm)

    def problems(self, total: int) -> list[str]:
        warm = steps_of(self.warmup, total)
        found = super().problems(total)
        if warm >= total > 0:
            found.append(f"schedule.warmup: {warm} steps, but the phase has only {total}; the peak would never be reached. Write fewer")
        return found

    @abstractmethod
    def after(self, step: int, total: int) -> float:
        """The rate of `step` of the `total` steps that follow the warm-up, where 0 <= step < total; step 0 is the peak."""
