"""Schedules that go from a peak to an end along one curve.

The curve reaches `end` one step after the phase, so that with `end: 0` the last step still learns.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from jaxtune.training.schedules.base import PositiveRate, Rate, WarmedSchedule


class Constant(WarmedSchedule):
    """One rate, after the warm-up if there is one."""

    rate: PositiveRate = Field(description="The learning rate.")

    def after(self, step: int, total: int) -> float:
        return self.rate


class PeakToEnd(WarmedSchedule):
    """From `peak` to `end`, which is not above it."""

    peak: PositiveRate = Field(description="The highest learning rate, right after the warm-up.")
    end: Rate = Field(default=0.0, description="The learning rate at the end of the phase; at most the peak.")

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.end > self.peak:
            raise ValueError(f"end {self.end} is above the peak {self.peak}; end is a learning rate, not a fraction of the peak")
        return self


class Falling(PeakToEnd):
    """Subclasses give the curve."""

    def after(self, step: int, total: int) -> float:
        return self.end + (self.peak - self.end) * self.share(step / total)

    @abstractmethod
    def share(self, progress: float) -> float:
        """What is left of peak - end after `progress` (0 to 1)."""


class Linear(Falling):
    """A straight line."""

    def share(self, progress: float) -> float:
        return 1.0 - progress


class Cosine(Falling):
    """Half a cosine (Loshchilov and Hutter 2017, without restarts)."""

    def share(self, progress: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * progress))


class Polynomial(Falling):
    """(1 - progress) to a power."""

    power: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="1 is the straight line; higher falls earlier.")

    def share(self, progress: float) -> float:
        return (1.0 - progress) ** self.power


class Exponential(PeakToEnd):
    """The same factor at every step."""

    end: PositiveRate = Field(description="The learning rate at the end of the phase; above 0, at most the peak.")

    def after(self, step: int, total: int) -> float:
        return self.peak * (self.end / self.peak) ** (step / total)
