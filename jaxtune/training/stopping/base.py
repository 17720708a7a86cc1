"""What a stop rule is: a pure function from what it remembers and one report to what it remembers and a decision.

What it remembers is JSON and lies in the checkpoint, so a resumed run decides as the undisturbed one would. (After a rollback the
loop keeps what the rules remember; going back there too would let them roll back for ever.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError
from jaxtune.metrics.base import Better, better


@dataclass(frozen=True)
class Report:
    """One evaluation, the same on every host."""

    step: int  # optimizer steps since the run began
    phase_step: int
    seconds: float  # of training since the run began, over restarts
    metrics: Mapping[str, float]  # of the validation split
    best: str  # the metric that decides which checkpoint is the best
    higher_is_better: bool  # about `best`
    train_loss: float  # of the latest step
    skipped: int  # steps of this phase skipped so far because loss or gradients were not finite


@dataclass(frozen=True)
class Continue:
    reason: str = ""


@dataclass(frozen=True)
class ScaleRate:
    """Multiply the learning rate by `factor` from here on."""

    factor: float
    reason: str


@dataclass(frozen=True)
class Rollback:
    """Go back to the best checkpoint and multiply the learning rate by `factor`."""

    factor: float
    reason: str


@dataclass(frozen=True)
class NextPhase:
    """End the phase; the run too, when it is the last."""

    reason: str


@dataclass(frozen=True)
class Stop:
    """End the run."""

    reason: str


Decision = Continue | ScaleRate | Rollback | NextPhase | Stop
Memory = dict[str, Any]  # JSON
End = Literal["phase", "run"]


class StopRule(Component):
    """Asked at every evaluation."""

    def start(self) -> Memory:
        """What it remembers before the first evaluation of a phase."""
        return {}

    @abstractmethod
    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        """What it remembers now (a new dict) and its decision."""

    def problems(self, metrics: Collection[str]) -> list[str]:
        """What does not fit evaluations that give these `metrics`; [] when all is well. Asked once, before training."""
        return []


class MetricRule(StopRule):
    """A rule that watches one number of the validation split."""

    metric: str | None = Field(default=None, description="The number to watch; null: the one that decides which checkpoint is the best.")
    better: Better | None = Field(
        default=None, description="max or min; only for a metric of your own, whose better direction is not known from its name."
    )

    def problems(self, metrics: Collection[str]) -> list[str]:
        if self.metric is None:
            return [] if self.better is None else ["stopping.better has no effect without stopping.metric; leave it out"]
        if self.metric not in metrics:
            known = ", ".join(sorted(metrics))
            hint = nearest(self.metric, tuple(metrics))
            return [f'stopping.metric: evaluations give no number "{self.metric}"{hint} (they give: {known})']
        found = better(self.metric)
        if found is None and self.better is None:
            return [f'stopping: say whether a larger or a smaller "{self.metric}" is better (better: max or better: min)']
        if found is not None and self.better is not None:
            return [f'stopping.better: "{self.metric}" is known to be better at its {found}; leave it out']
        return []

    def watched(self, report: Report) -> tuple[str, float, bool]:
        """(name, value, whether higher is better).

        Raises:
            ConfigError: the evaluation gives no such number, or its better direction is not known.
        """
        name = report.best if self.metric is None else self.metric
        if name == report.best and self.better is None:
            higher = report.higher_is_better
        elif problems := self.problems(report.metrics):
            raise ConfigError(problems)
        else:
            higher = (self.better or better(name)) == "max"
        if name not in report.metrics:
            raise ConfigError(f'stopping: evaluations give no number "{name}" (they give: {", ".join(sorted(report.metrics))})')
        return name, report.metrics[name], higher


def improves(value: float, best: float | None, higher_is_better: bool, by: float = 0.0) -> bool:
    """Whether `value` is better than `best` by more than `by`; NaN and infinity never are."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best + by if higher_is_better else value < best - by


def evaluations(count: int) -> str:
    return f"{count} evaluation{'s' if count > 1 else ''}"


def ending(end: End, reason: str) -> Stop | NextPhase:
    return Stop(reason) if end == "run" else NextPhase(reason)
