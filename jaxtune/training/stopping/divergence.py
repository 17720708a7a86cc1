"""Notice a run that goes wrong: the training loss far above its best, or steps skipped again and again."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from jaxtune.training.stopping.base import Continue, Decision, Memory, Report, Rollback, Stop, StopRule


class Divergence(StopRule):
    """Stops the run, or goes back to the best checkpoint with a lower rate."""

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(
        default=3.0, description="Diverged when the training loss is more than this many times its best at any evaluation of the phase."
    )
    floor: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.1, description="A best loss below this counts as this: three times almost nothing is not a divergence."
    )
    skipped: int = Field(default=10, ge=0, description="Diverged when more steps than this were skipped since the last evaluation.")
    action: Literal["stop", "rollback"] = Field(default="stop", description="End the run, or go back to the best checkpoint.")
    rate_factor: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="What a rollback multiplies the rate by.")
    rollbacks: int = Field(default=3, ge=1, description="How often it goes back; the next time it stops.")

    @model_validator(mode="after")
    def _rolls_back(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in ("rate_factor", "rollbacks") if getattr(self, name) != fields[name].default]
        if self.action == "stop" and idle:
            raise ValueError(f"{' and '.join(idle)} would have no effect with action: stop; write action: rollback or leave it out")
        return self

    def start(self) -> Memory:
        return {"best": None, "skipped": 0, "rollbacks": 0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        reason = self._reason(memory["best"], report, report.skipped - memory["skipped"])
        memory = memory | {"skipped": report.skipped}
        if reason is None:
            best = report.train_loss if memory["best"] is None else min(memory["best"], report.train_loss)
            return memory | {"best": best}, Continue()
        if self.action == "stop":
            return memory, Stop(reason)
        if memory["rollbacks"] == self.rollbacks:
            return memory, Stop(f"{reason}, after {self.rollbacks} rollbacks")
        return memory | {"rollbacks": memory["rollbacks"] + 1}, Rollback(self.rate_factor, reason)

    def _reason(self, best: float | None, report: Report, skipped: int) -> str | None:
        if not math.isfinite(report.train_loss):
            return f"the training loss is {report.train_loss}"
        if best is not None and report.train_loss > self.factor * max(best, self.floor):
            return f"the training loss {report.train_loss:.6g} is more than {self.factor:g} times its best {best:.6g}"
        if skipped > self.skipped:
            return f"{skipped} steps were skipped since the last evaluation, more than {self.skipped}"
        return None
