"""End when the validation metric is good enough."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jaxtune.training.stopping.base import Continue, Decision, End, Memory, MetricRule, Report, ending


class Target(MetricRule):
    """Ends at the first evaluation at which the metric reaches `value`."""

    value: Annotated[float, Field(allow_inf_nan=False)] = Field(
        description="Good enough: at least this, or at most this where less is better."
    )
    end: End = Field(default="run", description="What ends: the phase (the next one starts), or the whole run.")

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        name, value, higher = self.watched(report)
        reached = value >= self.value if higher else value <= self.value
        return memory, ending(self.end, f"{name} has reached {value:.6g} (target {self.value:g})") if reached else Continue()
