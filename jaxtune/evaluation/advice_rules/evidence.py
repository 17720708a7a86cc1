"""What the rules look at: a run's numbers cut into phases, with the two yardsticks that make thresholds mean something.

`guess` is the loss of a model that knows the class shares and nothing else, so "rose by half a guess" means the same for 2 classes and
for 1000. `noise` is the standard error of a metric on the run's validation rows, so a change below it is no change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxtune.data.facts import FILE as FACTS
from jaxtune.evaluation.record import Row, RunRecord, json_file, number
from jaxtune.metrics.base import better


@dataclass(frozen=True)
class Finding:
    """One piece of advice.

    Attributes:
        saw: the figure, in a sentence.
        change: dotted overrides; empty where no setting helps.
        why: in a sentence or two.
    """

    saw: str
    change: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        name: how the finding is called.
        sign: what has to be seen, with its threshold, for people.
        reason: why the threshold lies there.
        check: the rule itself.
        unless: names of findings that explain the same sign better.
    """

    name: str
    sign: str
    reason: str
    check: Callable[[Evidence], Finding | None]
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class PhaseSeen:
    """One phase by its numbers; arrays are f64 in order of the steps, steps counted from the beginning of the run."""

    number: int
    begin: int  # steps before it
    planned: int | None  # steps
    epoch_steps: int | None
    settings: Row
    steps: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    norm: np.ndarray
    at: np.ndarray  # steps of the evaluations
    validation: np.ndarray  # loss there
    metric: np.ndarray  # the deciding number there
    parts: Sequence[Mapping[str, float]]  # norm of the gradient by part, at evaluations
    rows: Sequence[Row] = field(repr=False)  # of the training steps

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def key(self) -> str:
        return f"phases.{self.number}"

    @cached_property
    def start(self) -> float:
        """The loss of the first step: the only one that no update has touched."""
        return float(self.loss[0]) if len(self) else math.nan

    @cached_property
    def end(self) -> float:
        """Median loss of the last fifth."""
        return median(self.loss[-max(1, len(self) // 5) :])

    @cached_property
    def smoothed(self) -> np.ndarray:
        """Running means over as many steps as hold about 48 examples, 3 to 25, so that one hard batch is no trend."""
        size = int(np.clip(round(48 / max(self.examples, 1)), 3, 25))
        finite = np.where(np.isfinite(self.loss), self.loss, median(self.loss))
        if len(finite) < size:
            return finite
        return np.convolve(finite, np.ones(size) / size, mode="valid")

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of a batch's loss around its neighbours', where the phase is calmest: of its quarters the least."""
        quarters = [np.abs(np.diff(part)) for part in np.array_split(self.loss, 4) if len(part) > 2]
        return min((1.05 * median(steps) for steps in quarters if np.isfinite(steps).any()), default=0.0)  # 1.05: 1.48 / root of 2

    @property
    def peak(self) -> float:
        """The highest smoothed loss after the first step."""
        return float(self.smoothed.max()) if len(self) else math.nan

    @property
    def peak_place(self) -> float:
        """Where in the phase it lies, 0 to 1."""
        return float(self.smoothed.argmax()) / max(len(self) - 1, 1)

    @property
    def examples(self) -> float:
        """In a typical step."""
        return median(np.array([row["examples"] for row in self.rows], np.float64)) if self.rows else math.nan

    def level(self, step: float, window: int) -> float:
        """Median training loss of the `window` steps up to `step`."""
        return median(self.loss[self.steps <= step][-window:])

    @property
    def rate_key(self) -> str | None:
        """The setting that holds the highest rate, where the schedule has one."""
        schedule = self.settings["optimizer"].get("schedule") or {}
        name = next((name for name in ("peak", "rate") if isinstance(schedule.get(name), int | float)), None)
        return None if name is None else f"{self.key}.optimizer.schedule.{name}"

    @property
    def highest_rate(self) -> float:
        rates = self.rate[np.isfinite(self.rate)]
        return float(rates.max()) if len(rates) else math.nan

    def with_rate(self, factor: float) -> tuple[str, ...]:
        """Overrides for another rate."""
        wanted = round_number(self.highest_rate * factor)
        if self.rate_key is not None:
            return (f"{self.rate_key}={wanted}",)
        return (f"{self.key}.optimizer.schedule={{kind: linear, peak: {wanted}, warmup: 0.1}}",)

    def with_length(self, factor: float) -> tuple[str, ...]:
        """Overrides for another length."""
        name = "epochs" if self.settings.get("epochs") else "steps"
        length = float(self.settings[name]) * factor
        return (f"{self.key}.{name}={max(1, round(length)) if name == 'steps' else f'{max(length, 0.1):.2g}'}",)


@dataclass(frozen=True, eq=False)
class Evidence:
    """A run for the rules. Whatever is not recorded is None or empty, and the rule that needs it says nothing."""

    record: RunRecord
    facts: Row
    state: Row

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Of a run that has ended or not.

        Raises:
            ConfigError: it is no run folder.
        """
        return cls.of(RunRecord.read(folder, ended=False))

    @classmethod
    def of(cls, record: RunRecord) -> Evidence:
        return cls(record, json_file(record.folder / FACTS), json_file(record.folder / "state.json"))

    @property
    def experiment(self) -> Row:
        return self.record.experiment

    @cached_property
    def phases(self) -> tuple[PhaseSeen, ...]:
        """Those with at least one step."""
        begun = self.record.phases
        ends = [*(phase.step for phase in begun[1:]), math.inf]
        found = (self._phase(phase.number, phase.step, end, phase.settings) for phase, end in zip(begun, ends, strict=True))
        return tuple(phase for phase in found if len(phase))

    def _phase(self, place: int, begin: int, end: float, settings: Row) -> PhaseSeen:
        inside = [row for row in self.record.rows if begin < row.get("step", -1) <= end]
        train = list({row["step"]: row for row in inside if row.get("split") == "train"}.values())
        tested = list({row["step"]: row for row in inside if row.get("split") == "validation"}.values())
        planned = (self.facts.get("phases") or [])[place : place + 1]
        best = self.record.best_metric
        return PhaseSeen(
            place,
            begin,
            planned[0]["steps"] if planned else settings.get("steps"),
            planned[0]["epoch_steps"] if planned else None,
            settings,
            column(train, "step"),
            column(train, "loss"),
            column(train, "learning_rate"),
            column(train, "gradient_norm"),
            column(tested, "step"),
            column(tested, "loss"),
            column(tested, best),
            [
                {name: number(value) for name, value in row["gradient_norm_by_part"].items()}
                for row in train
                if "gradient_norm_by_part" in row
            ],
            train,
        )

    @property
    def main(self) -> PhaseSeen | None:
        """The longest phase, the later of equals."""
        return max(self.phases, key=lambda phase: (len(phase), phase.number), default=None)

    def last_metric(self, phase: PhaseSeen) -> float:
        """The best the metric had been before a phase; NaN without an evaluation."""
        before = np.concatenate([p.metric for p in self.phases if p.number < phase.number] or [np.empty(0)])
        before = before[np.isfinite(before)]
        return math.nan if not len(before) else float(before.max() if self.higher_is_better else before.min())

    # -- yardsticks -----------------------------------------------------------------------------------------------------

    @cached_property
    def guess(self) -> float:
        """The loss of guessing by class shares; where that is not known, the loss that the run began with."""
        if self.knows_guess:
            shares = np.array(list(self.counts.values()), np.float64)
            if self.record.task["loss"].get("class_weights", "none") != "none":
                return math.log(max(len(shares), 2))
            shares = shares[shares > 0] / shares.sum()
            return max(float(-(shares * np.log(shares)).sum()), 0.05)
        first = self.phases[0].loss[: max(3, len(self.phases[0]) // 20)] if self.phases else np.empty(0)
        return max(median(first), 1e-9) if len(first) else 1.0

    @property
    def knows_guess(self) -> bool:
        kind = self.record.task["loss"]["kind"] if self.record.problem == "single_label" else None
        return kind == "cross_entropy" and sum(self.counts.values()) > 0

    def noise(self, value: float) -> float:
        """Standard error of a metric of this value on the validation rows; of a metric that is no share, 2 % of it."""
        rows = (self.facts.get("rows") or {}).get("validation") or (len(found) if (found := self.record.outcomes.get("validation")) else 0)
        if 0 <= value <= 1 and self.higher_is_better and rows:
            return math.sqrt(max(value * (1 - value), 1 / rows) / rows)
        return 0.02 * abs(value)

    @cached_property
    def higher_is_better(self) -> bool:
        """About the deciding metric; of a metric of one's own it is seen from the evaluations that were the best so far."""
        name = self.record.best_metric
        if (known := better(name)) is not None:
            return known == "max"
        best = [number(row[name]) for row in self.record.rows if row.get("split") == "validation" and row.get("best") and name in row]
        return len(best) < 2 or best[-1] > best[0]

    def gain(self, old: float, new: float) -> float:
        """How much better `new` is."""
        return new - old if self.higher_is_better else old - new

    # -- data -----------------------------------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Training examples of each class, in the order of the outputs; empty where there are no classes."""
        return (self.facts.get("labels") or {}).get("train") or {}

    def per_class(self, name: str) -> Mapping[str, float]:
        """A number per class at the best step, from the validation split; empty where it was not measured."""
        best = self.record.result.get("best_step")
        rows = [row for row in self.record.rows if row.get("split") == "validation" and name in row]
        chosen = next((row for row in rows if row["step"] == best), rows[-1] if rows else None)
        if chosen is None or len(chosen[name]) != len(self.counts):
            return {}
        return {label: number(value) for label, value in zip(self.counts, chosen[name], strict=True)}

    @property
    def devices(self) -> Sequence[str]:
        return self.record.starts[-1].get("devices", []) if self.record.starts else []


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """f64 of a number in every row; NaN where it is missing."""
    return np.array([number(row[name]) if name in row else math.nan for row in rows], np.float64)


def median(values: np.ndarray) -> float:
    """Of the finite ones; NaN of none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def round_number(value: float) -> str:
    """Two digits, as it is written in YAML: 3.0e-05."""
    return f"{float(f'{value:.1e}'):.1e}"
