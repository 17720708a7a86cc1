"""The loop of one phase: a generator of events that fits on a screen.

Three orders matter. A checkpoint is saved before the iterator moves; numbers are read one step late, so that the host never waits for the
device; decisions fall at evaluations only, and equally on every host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import jax

from jaxtune.core.errors import DataError, DivergedError, JaxtuneError
from jaxtune.parallel.placement import Placement
from jaxtune.training.compile import CompiledStep
from jaxtune.training.part_norms import named
from jaxtune.training.state import TrainState
from jaxtune.training.stopping.base import Continue, Decision, NextPhase, Report, Rollback, ScaleRate, Stop, StopRule

STRENGTH: tuple[type, ...] = (Continue, ScaleRate, Rollback, NextPhase, Stop)  # of several decisions the strongest holds


@dataclass(frozen=True)
class Stepped:
    """One optimizer step, told a step late. Losses are means over the batch's weight."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    finite: bool
    examples: int
    tokens: int
    seconds: float
    wait_seconds: float
    compiled: bool
    part_norms: Mapping[str, float] = field(default_factory=dict)  # of the gradient, by part of the model; at evaluations


@dataclass(frozen=True)
class Evaluated:
    step: int
    metrics: Mapping[str, Any]
    is_best: bool
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A save has begun; it is durable when the store says so."""

    step: int
    seconds: float


@dataclass(frozen=True)
class Decided:
    step: int
    decision: Decision


Event = Stepped | Evaluated | Saved | Decided


@dataclass
class Progress:
    """The host's part of what changes; JSON in every checkpoint."""

    step: int = 0  # optimizer steps since the run began
    phase: int = 0
    phase_step: int = 0
    rate_scale: float = 1.0
    best: float | None = None
    best_step: int | None = None
    rules: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0  # in steps, over restarts
    skipped: int = 0  # steps of this phase
    ending: Literal["", "phase", "run", "rollback", "adjust"] = ""  # how the phase ends here, so that a resumed run does not ask again
    rollback_factor: float = 1.0
    rolled_back_scale: float = 1.0  # product of the factors of all rollbacks; unlike a plateau's, they last beyond the phase
    adjustments: list[dict[str, Any]] = field(default_factory=list)  # taken up so far: {"step", "phase", "changes"}
    order: int = 0  # how often the order of this phase's batches began anew, because an adjustment changed the batches
    order_start: int = 0  # step of the phase at which the present order began
    order_epochs: float = 0.0  # epochs of the phase that lay behind it then

    @property
    def batch(self) -> int:
        """The number of the next batch in the present order."""
        return self.phase_step - self.order_start

    def note(self, decision: Decision, last: bool) -> None:
        """Takes over what a decision means for what comes next."""
        if isinstance(decision, ScaleRate):
            self.rate_scale *= decision.factor
        if isinstance(decision, Rollback):
            self.ending, self.rollback_factor = "rollback", decision.factor
        elif isinstance(decision, Stop):
            self.ending = "run"
        elif last or isinstance(decision, NextPhase):
            self.ending = "phase"

    def next_phase(self) -> None:
        self.phase, self.phase_step, self.rules, self.ending = self.phase + 1, 0, [], ""
        self.order, self.order_start, self.order_epochs = 0, 0, 0.0
        self.rate_scale, self.skipped = self.rolled_back_scale, 0

    def go_on_from(self, earlier: Progress) -> Progress:
        """After a rollback: `earlier` with a lower rate, the time that was spent, and what the rules of this phase remember, or they would
        roll back for ever."""
        factor = self.rollback_factor
        return replace(
            earlier,
            rate_scale=self.rate_scale * factor,
            rolled_back_scale=self.rolled_back_scale * factor,
            rules=self.rules if earlier.phase == self.phase else earlier.rules,
            seconds=self.seconds,
            ending="" if earlier.ending == "rollback" else earlier.ending,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Schedule:
    """When things happen inside a phase."""

    steps: int
    evaluate_every: int | None = None
    save_every: int | None = None
    skip_limit: int = 5


@dataclass(frozen=True)
class Goal:
    """The metric that decides what is best."""

    metric: str
    higher_is_better: bool

    def better(self, value: float, best: float | None) -> bool:
        if not math.isfinite(value):
            return False
        return best is None or (value > best if self.higher_is_better else value < best)


def train_phase(
    state: TrainState,
    step: CompiledStep,
    batches: Iterator[Any],
    controls: Callable[[int, float], Any],
    placement: Placement,
    schedule: Schedule,
    progress: Progress,
    *,
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None,
    goal: Goal | None = None,
    rules: Sequence[StopRule] = (),
    save: Callable[[TrainState, Progress, float | None], None] | None = None,
    interrupted: Callable[[int], type[JaxtuneError] | None] = lambda step: None,
    adjusted: Callable[[Progress], bool] = lambda progress: False,
) -> Iterator[tuple[Event, TrainState]]:
    """Trains from `progress.phase_step` to the end of the phase.

    Args:
        batches: yields objects with `.arrays` (on the devices), `.examples`, `.tokens` and `.ids` (example ids on the host); a
            `wait_seconds` of its own tells how long it kept the loop waiting.
        controls: (step of the phase, rate scale) -> the step's traced scalars, host values.
        save: starts a checkpoint; called with the metric when an evaluation belongs to this very step.
        interrupted: asked after every step; a class means: save and raise it.
        adjusted: asked at evaluations and saves; True means: save and end here, because what follows is trained otherwise.

    Yields:
        (event, state): the state is only valid until the generator is resumed, because the next step is given its memory.

    Raises:
        DivergedError: too many steps in a row were not finite.
        DataError: the batches ended before the phase.
        JaxtuneError: what `interrupted` asked for, after the checkpoint has begun.
    """
    meter = Meter(batches, progress)
    pending: Pending | None = None
    if not progress.rules:
        progress.rules = [rule.start() for rule in rules]
    for batch in batches:
        host = controls(progress.phase_step, progress.rate_scale)
        scalars = placement.put(host)
        compiled = not step.is_known(batch.arrays)
        program = step.prepare(state, batch.arrays, scalars)
        with jax.transfer_guard("disallow"):
            state, report = program(state, batch.arrays, scalars)
        progress.step, progress.phase_step = progress.step + 1, progress.phase_step + 1
        if pending is not None:
            yield meter.read(pending), state
            meter.stop_if_diverged(schedule.skip_limit)
        pending = Pending(progress.step, batch, report, rate_of(host), compiled)

        last = progress.phase_step >= schedule.steps
        evaluating = evaluate is not None and (last or due(progress.phase_step, schedule.evaluate_every))
        reason = interrupted(progress.step)
        saving = save is not None and (last or reason is not None or due(progress.phase_step, schedule.save_every))
        if not (evaluating or saving or last or reason is not None):
            meter.restart()
            continue

        # From here on the device is idle anyway. The step's own row goes out before the checkpoint that makes it final.
        told = meter.read(pending, tuple(state.trainable) if evaluating else ())
        pending = None
        yield told, state
        meter.stop_if_diverged(schedule.skip_limit)
        metric: float | None = None
        decision: Decision = Continue()
        if evaluating:
            assert evaluate is not None and goal is not None, "an evaluation needs a goal"
            start = time.perf_counter()
            metrics = evaluate(state)
            metric = float(metrics[goal.metric])
            is_best = goal.better(metric, progress.best)
            if is_best:
                progress.best, progress.best_step = metric, progress.step
            yield Evaluated(progress.step, metrics, is_best, time.perf_counter() - start), state
            decision = decide(rules, progress, goal, metrics, told.loss)
            saving = saving or is_best
        progress.note(decision, last)
        if not progress.ending and reason is None and adjusted(progress):
            progress.ending = "adjust"
        if save is not None and (saving or progress.ending in ("phase", "run", "adjust")):
            start = time.perf_counter()
            save(state, progress, metric)
            yield Saved(progress.step, time.perf_counter() - start), state
        if not isinstance(decision, Continue):
            yield Decided(progress.step, decision), state
        if reason is not None:
            raise reason(f"stopped after step {progress.step}")
        if progress.ending:
            return
        meter.restart()
    if pending is not None:
        yield meter.read(pending), state
        meter.stop_if_diverged(schedule.skip_limit)
    if progress.phase_step < schedule.steps:
        raise DataError(f"the batches ended after step {progress.phase_step} of {schedule.steps}; give more of them, or train fewer steps")


@dataclass(frozen=True)
class Pending:
    """A step that was dispatched and whose numbers have not been read."""

    step: int
    batch: Any
    report: Any
    rate: float
    compiled: bool


class Meter:
    """Reads a step's numbers and times it: from one reading to the next, evaluations and saves left out."""

    def __init__(self, batches: Any, progress: Progress):
        self.batches, self.progress = batches, progress
        self.clock, self.waited = time.perf_counter(), 0.0
        self.latest: Pending | None = None
        self.skipped_in_a_row = 0

    def restart(self) -> None:
        """The next step's time begins now, after whatever stood between."""
        self.clock = time.perf_counter()

    def read(self, pending: Pending, keys: Sequence[str] = ()) -> Stepped:
        """Fetches the numbers; by now the device has usually finished the step. With the stored paths of what trains also norms by part."""
        numbers = jax.device_get({name: value for name, value in pending.report.items() if keys or name != "part_norms"})
        now, waited = time.perf_counter(), getattr(self.batches, "wait_seconds", 0.0)
        seconds, wait = now - self.clock, waited - self.waited
        self.clock, self.waited = now, waited
        self.progress.seconds += seconds
        self.progress.skipped += int(not numbers["finite"])
        self.latest, self.skipped_in_a_row = pending, int(numbers["skipped_in_a_row"])
        loss, batch = numbers["loss"], pending.batch
        mean = float(loss.total) / float(loss.weight) if float(loss.weight) > 0 else math.nan
        return Stepped(
            pending.step, mean, pending.rate, float(numbers["gradient_norm"]), bool(numbers["finite"]), batch.examples, batch.tokens,
            seconds, wait, pending.compiled, named(keys, numbers["part_norms"]) if keys else {},
        )  # fmt: skip

    def stop_if_diverged(self, skip_limit: int) -> None:
        """After the latest step has been told, so that its row is written and whoever listens holds a state that is still valid.

        Raises:
            DivergedError: `skip_limit` steps in a row were not finite.
        """
        if self.skipped_in_a_row < skip_limit:
            return
        assert self.latest is not None
        rows = [int(i) for i in self.latest.batch.ids if i >= 0][:16]
        raise DivergedError(
            f"loss or gradients were not finite in {self.skipped_in_a_row} steps in a row, up to step {self.latest.step} (rate "
            f"{self.latest.rate:.3g}); the parameters are those before. The last batch held the examples {rows}. Lower the rate, lengthen "
            "the warm-up, clip (optimizer.clip_norm) or look at these rows"
        )


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def rate_of(controls: Mapping[str, Any]) -> float:
    return float(controls["optimizer"].get("rate", math.nan))


def decide(rules: Sequence[StopRule], progress: Progress, goal: Goal, metrics: Mapping[str, Any], loss: float) -> Decision:
    """Asks every rule and returns the strongest answer."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    report = Report(
        step=progress.step, phase_step=progress.phase_step, seconds=progress.seconds, metrics=numbers, best=goal.metric,
        higher_is_better=goal.higher_is_better, train_loss=loss, skipped=progress.skipped,
    )  # fmt: skip
    answers: list[Decision] = [Continue()]
    for index, rule in enumerate(rules):
        progress.rules[index], answer = rule.decide(progress.rules[index], report)
        answers.append(answer)
    return max(answers, key=lambda answer: STRENGTH.index(type(answer)))
