"""The loop of one phase: a generator of events that fits on a screen.

Three orders matter. A checkpoint is saved before the iterator moves; numbers are read one step late, so that the host never waits for the
device; decisions fall at evaluations only, and equally on every host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from jaxtune.core.errors import DivergedError, JaxtuneError
from jaxtune.parallel.placement import Placement
from jaxtune.training.compile import CompiledStep
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
    phase_step: int = 0  # also the number of the next batch
    rate_scale: float = 1.0
    best: float | None = None
    best_step: int | None = None
    rules: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

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
    wait_seconds: Callable[[], float] = lambda: 0.0,
) -> Iterator[tuple[Event, TrainState]]:
    """Trains from `progress.phase_step` to the end of the phase.

    Args:
        batches: yields objects with `.arrays` (on the device), `.examples`, `.tokens`, and `.ids` (example ids on the host).
        controls: (step of the phase, rate scale) -> the step's traced scalars, host values.
        save: starts a checkpoint; called with the metric when an evaluation belongs to this very step.
        interrupted: asked after every step; a class means: save and raise it.

    Yields:
        (event, state): the state is only valid until the generator is resumed, because the next step is given its memory.

    Raises:
        DivergedError: too many steps in a row were not finite.
        Preempted, Interrupted: after the checkpoint is durable.
    """
    pending: tuple[int, Any, Any, float, bool] | None = None
    clock = time.perf_counter()
    waited = wait_seconds()
    loss = math.nan
    if not progress.rules:
        progress.rules = [rule.start() for rule in rules]
    for batch in batches:
        number = progress.phase_step
        host_controls = controls(number, progress.rate_scale)
        device_controls = placement.put(host_controls)
        compiled = not step.is_known(batch.arrays)
        program = step.prepare(state, batch.arrays, device_controls)
        with jax.transfer_guard("disallow"):
            state, report = program(state, batch.arrays, device_controls)
        progress.step, progress.phase_step = progress.step + 1, number + 1
        if pending is not None:
            event = read(*pending, since=clock, waited=wait_seconds() - waited)
            clock, waited = time.perf_counter(), wait_seconds()
            loss = event.loss
            yield event, state
            check_diverged(pending, schedule.skip_limit)
        pending = (progress.step, batch, report, rate_of(host_controls), compiled)

        last = progress.phase_step >= schedule.steps
        metric: float | None = None
        decision: Decision | None = None
        if evaluate is not None and (last or due(progress.phase_step, schedule.evaluate_every)):
            event = read(*pending, since=clock, waited=wait_seconds() - waited)
            yield event, state
            check_diverged(pending, schedule.skip_limit)
            pending, loss = None, event.loss
            start = time.perf_counter()
            metrics = evaluate(state)
            assert goal is not None, "an evaluation needs a goal"
            metric = float(metrics[goal.metric])
            is_best = goal.better(metric, progress.best)
            if is_best:
                progress.best, progress.best_step = metric, progress.step
            yield Evaluated(progress.step, metrics, is_best, time.perf_counter() - start), state
            decision = decide(rules, progress, goal, metrics, loss, progress.step)
            if isinstance(decision, ScaleRate):
                progress.rate_scale *= decision.factor
            if is_best and save is not None and not last and not due(progress.phase_step, schedule.save_every):
                yield from saved(save, state, progress, metric, progress.step)
            clock, waited = time.perf_counter(), wait_seconds()
        reason = interrupted(progress.step)
        if save is not None and (last or reason is not None or due(progress.phase_step, schedule.save_every)):
            yield from saved(save, state, progress, metric, progress.step)
        if decision is not None and not isinstance(decision, Continue):
            yield Decided(progress.step, decision), state
        if reason is not None:
            raise reason(f"stopped after step {progress.step}, which is saved")
        if last or isinstance(decision, Stop | NextPhase | Rollback):
            break
    if pending is not None:
        yield read(*pending, since=clock, waited=wait_seconds() - waited), state
        check_diverged(pending, schedule.skip_limit)


def due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def rate_of(controls: Mapping[str, Any]) -> float:
    return float(controls["optimizer"].get("rate", math.nan))


def saved(save: Callable[..., None], state: TrainState, progress: Progress, metric: float | None, step: int) -> Iterator[tuple[Event, TrainState]]:
    start = time.perf_counter()
    save(state, progress, metric)
    yield Saved(step, time.perf_counter() - start), state


def read(step: int, batch: Any, report: Any, rate: float, compiled: bool, *, since: float, waited: float) -> Stepped:
    """Fetches a step's numbers; by now the device has usually finished it."""
    numbers = jax.device_get(report)
    loss = float(numbers["loss"].total) / max(float(numbers["loss"].weight), np.finfo(np.float32).tiny)
    return Stepped(
        step, loss, rate, float(numbers["gradient_norm"]), bool(numbers["finite"]), batch.examples, batch.tokens,
        time.perf_counter() - since, waited, compiled,
    )  # fmt: skip


def check_diverged(pending: tuple[int, Any, Any, float, bool], limit: int) -> None:
    """Raises:
    DivergedError: `limit` steps in a row were skipped because loss or gradients were not finite.
    """
    step, batch, report, rate, _ = pending
    skipped = int(jax.device_get(report["skipped_in_a_row"]))
    if skipped >= limit:
        rows = [int(i) for i in batch.ids if i >= 0][:16]
        raise DivergedError(
            f"loss or gradients were not finite in {skipped} steps in a row, up to step {step} (rate {rate:.3g}); the parameters are those before. "
            f"The last batch held the examples {rows}. Lower the rate, lengthen the warm-up, clip (optimizer.clip_norm) or look at these rows"
        )


def decide(
    rules: Sequence[StopRule], progress: Progress, goal: Goal, metrics: Mapping[str, Any], loss: float, step: int
) -> Decision:
    """Asks every rule and returns the strongest answer."""
    numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    report = Report(
        step=step, phase_step=progress.phase_step, seconds=progress.seconds, metrics=numbers, best=goal.metric,
        higher_is_better=goal.higher_is_better, train_loss=loss, skipped=0,
    )  # fmt: skip
    answers: list[Decision] = [Continue(reason="")]
    for index, rule in enumerate(rules):
        progress.rules[index], answer = rule.decide(progress.rules[index], report)
        answers.append(answer)
    return max(answers, key=lambda answer: STRENGTH.index(type(answer)))

