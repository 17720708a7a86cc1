"""End when the validation metric has not improved for a while."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jaxtune.training.stopping.base import Continue, Decision, End, Memory, MetricRule, Report, ending, evaluations, improves


class EarlyStopping(MetricRule):
    """Ends after `patience` evaluations in a row without an improvement."""

    patience: int = Field(default=3, ge=1, description="Evaluations in a row without improvement after which it ends.")
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="An improvement is one by more than this over the best so far."
    )
    end: End = Field(default="phase", description="What ends: the phase (the next one starts), or the whole run.")

    def start(self) -> Memory:
        return {"best": None, "waited": 0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        name, value, higher = self.watched(report)
        if improves(value, memory["best"], higher, self.min_delta):
            return {"best": value, "waited": 0}, Continue()
        memory = memory | {"waited": memory["waited"] + 1}
        if memory["waited"] < self.patience:
            return memory, Continue()
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        best = "a first number" if memory["best"] is None else f"{memory['best']:.6g}"
        return memory, ending(self.end, f"{name} has not improved on {best}{margin} for {evaluations(memory['waited'])} (now {value:.6g})")
