"""Lower the rate when the validation metric stands still."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jaxtune.training.stopping.base import Continue, Decision, Memory, MetricRule, Report, ScaleRate, evaluations, improves


class Plateau(MetricRule):
    """Multiplies the rate by `factor` after every `patience` evaluations in a row without an improvement."""

    patience: int = Field(default=2, ge=1, description="Evaluations in a row without improvement after which the rate is lowered.")
    factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.5, description="What the rate is multiplied by.")
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="An improvement is one by more than this over the best so far."
    )
    min_scale: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01, description="The rate is never lowered below this share of what the schedule says."
    )

    def start(self) -> Memory:
        return {"best": None, "waited": 0, "scale": 1.0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        name, value, higher = self.watched(report)
        if improves(value, memory["best"], higher, self.min_delta):
            return memory | {"best": value, "waited": 0}, Continue()
        waited, scale = memory["waited"] + 1, memory["scale"] * self.factor
        if waited < self.patience or scale < self.min_scale:
            return memory | {"waited": waited}, Continue()
        reason = f"{name} has stood still for {evaluations(waited)} (now {value:.6g}); the rate is {scale:.4g} of the schedule's"
        return memory | {"waited": 0, "scale": scale}, ScaleRate(self.factor, reason)
