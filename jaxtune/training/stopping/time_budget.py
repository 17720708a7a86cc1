"""End the run when its time is used up."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from jaxtune.training.stopping.base import Continue, Decision, Memory, Report, Stop, StopRule

Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class TimeBudget(StopRule):
    """Looked at when an evaluation is done, so it ends at the first one after the budget; the parts are added up."""

    hours: Amount | None = Field(default=None, description="Hours of training, over restarts.")
    minutes: Amount | None = Field(default=None, description="Minutes of training, over restarts.")
    seconds: Amount | None = Field(default=None, description="Seconds of training, over restarts.")

    @model_validator(mode="after")
    def _is_some(self) -> Self:
        if not self.budget_seconds:
            raise ValueError("time_budget needs hours, minutes or seconds")
        return self

    @property
    def budget_seconds(self) -> float:
        return 3600.0 * (self.hours or 0.0) + 60.0 * (self.minutes or 0.0) + (self.seconds or 0.0)

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        if report.seconds < self.budget_seconds:
            return memory, Continue()
        return memory, Stop(f"the time budget of {self.budget_seconds:g} s is used up ({report.seconds:.0f} s)")
