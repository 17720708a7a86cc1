"""The loop of a phase: what happens in which order, and what decisions, interruptions and bad steps do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tiny

from jaxtune.core.errors import DataError, DivergedError, Interrupted, Preempted
from jaxtune.training.loop import Decided, Evaluated, Goal, Progress, Saved, Schedule, Stepped, train_phase
from jaxtune.training.stage import Stage
from jaxtune.training.state import TrainState
from jaxtune.training.stopping.base import Continue, Decision, Memory, NextPhase, Report, Rollback, ScaleRate, Stop, StopRule


class Script(StopRule):
    """Decides what it is told to, and remembers how often it was asked."""

    answers: tuple[Any, ...]

    def start(self) -> Memory:
        return {"asked": 0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        asked = memory["asked"]
        return {"asked": asked + 1}, self.answers[asked] if asked < len(self.answers) else Continue()


@dataclass
class Run:
    """One phase of the small module with everything it does written down in order."""

    steps: int = 6
    stage: Stage = field(default_factory=lambda: tiny.small_stage())
    progress: Progress = field(default_factory=Progress)
    log: list[str] = field(default_factory=list)
    saved: list[tuple[int, float | None, dict[str, Any]]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    batches: Callable[[int], tiny.Batch] = field(default_factory=lambda: lambda number: tiny.points(8, number))
    available: int = 100

    def feed(self) -> Iterator[tiny.OnDevice]:
        for number in range(self.progress.phase_step, self.available):
            self.log.append(f"batch {number}")
            yield tiny.put(self.batches(number), self.stage.step.placement)

    def __call__(
        self, metrics: Sequence[float] | None = None, rules: Sequence[StopRule] = (), higher: bool = False, **settings: Any
    ) -> Run:
        """`metrics`: what the evaluations find, one after the other; None: nothing is evaluated."""
        left = iter(metrics or ())
        schedule = {name: settings.pop(name) for name in ("evaluate_every", "save_every", "skip_limit") if name in settings}

        def evaluate(state: TrainState) -> Mapping[str, Any]:
            self.log.append(f"evaluate {int(state.step)}")
            return {"loss": next(left), "names": ["not a number"]}

        def save(state: TrainState, progress: Progress, metric: float | None) -> None:
            self.log.append(f"save {int(state.step)}")
            self.saved.append((int(state.step), metric, progress.to_json()))

        events = train_phase(
            self.stage.state, self.stage.step, self.feed(), self.stage.controls, self.stage.step.placement,
            Schedule(self.steps, **schedule), self.progress,
            goal=Goal("loss", higher), rules=rules, **{"evaluate": None if metrics is None else evaluate, "save": save, **settings},
        )  # fmt: skip
        for event, state in events:
            self.stage.state = state
            self.events.append(event)
            self.log.append(f"{type(event).__name__} {event.step}")
        return self

    def of[T](self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def test_the_order_of_events() -> None:
    run = Run()([3.0, 2.0, 2.5], evaluate_every=2, save_every=3)
    assert run.log == [
        "batch 0", "batch 1", "Stepped 1", "Stepped 2", "evaluate 2", "Evaluated 2", "save 2", "Saved 2",  # the first is the best
        "batch 2", "Stepped 3", "save 3", "Saved 3",  # due
        "batch 3", "Stepped 4", "evaluate 4", "Evaluated 4", "save 4", "Saved 4",  # better
        "batch 4", "batch 5", "Stepped 5", "Stepped 6", "evaluate 6", "Evaluated 6", "save 6", "Saved 6",  # the end
    ]  # fmt: skip
    assert [event.is_best for event in run.of(Evaluated)] == [True, True, False]
    assert [(step, metric) for step, metric, _ in run.saved] == [(2, 3.0), (3, None), (4, 2.0), (6, 2.5)]
    assert (run.progress.best, run.progress.best_step, run.progress.ending) == (2.0, 4, "phase")


def test_a_save_comes_before_the_iterator_moves() -> None:
    """What the checkpoint says about the position of the data is what has been taken from it."""
    run = Run()([1.0] * 6, evaluate_every=1, save_every=1)
    for step, _, progress in run.saved:
        taken = [line for line in run.log[: run.log.index(f"save {step}")] if line.startswith("batch")]
        assert len(taken) == progress["phase_step"] == progress["step"] == step
    assert len(run.saved) == 6


def test_numbers_are_read_one_step_late() -> None:
    """While a step computes, the host already has the next batch: it never waits between two plain steps."""
    run = Run()(None)
    for step in range(1, 5):
        assert run.log.index(f"batch {step}") < run.log.index(f"Stepped {step}") < run.log.index(f"batch {step + 1}")
    assert [event.step for event in run.of(Stepped)] == [1, 2, 3, 4, 5, 6]


def test_without_cadence_the_end_is_evaluated_and_saved() -> None:
    run = Run()([1.0])
    assert run.log[-4:] == ["evaluate 6", "Evaluated 6", "save 6", "Saved 6"]
    assert len(run.of(Evaluated)) == len(run.saved) == 1
    assert not Run()(None).of(Evaluated)


@pytest.mark.parametrize(("higher", "best"), [(True, 3), (False, 1)])
def test_best_is_finite_and_in_the_right_direction(higher: bool, best: int) -> None:
    run = Run()([float("nan"), 1.0, 2.0, 3.0, float("inf") if higher else float("-inf"), 2.0], higher=higher, evaluate_every=1)
    assert run.progress.best == best and run.progress.best_step == {3: 4, 1: 2}[best]
    assert not run.of(Evaluated)[0].is_best


def test_numbers_of_a_step() -> None:
    run = Run()(None)
    first = run.of(Stepped)[0]
    assert (first.examples, first.tokens, first.finite, first.compiled) == (8, 8, True, True)
    assert [event.compiled for event in run.of(Stepped)[1:]] == [False] * 5
    np.testing.assert_allclose(first.learning_rate, 0.01)
    by_hand = tiny.small_stage()
    (report,) = tiny.steps(by_hand, [tiny.points(8, 0)])
    assert first.loss == float(report["loss"].total) / float(report["loss"].weight)
    assert first.gradient_norm == float(report["gradient_norm"])
    assert run.progress.seconds == pytest.approx(sum(event.seconds for event in run.of(Stepped)))


def test_evaluations_saves_and_the_caller_are_no_time_of_a_step() -> None:
    def slow(*_: Any) -> dict[str, float]:
        time.sleep(0.3)
        return {"loss": 1.0}

    run = Run(stage=warm())
    run(None, evaluate=slow, save=lambda *_: time.sleep(0.3), evaluate_every=2, save_every=2)
    assert run.progress.seconds < 0.3 and all(event.seconds >= 0.3 for event in (*run.of(Evaluated), *run.of(Saved)))


def test_waiting_for_data_is_told_per_step() -> None:
    class Waiting(Iterator[tiny.OnDevice]):
        wait_seconds = 0.0

        def __init__(self, batches: Iterator[tiny.OnDevice]):
            self.batches = batches

        def __next__(self) -> tiny.OnDevice:
            self.wait_seconds += 0.5
            return next(self.batches)

    run = Run(steps=3)
    waiting = Waiting(run.feed())
    run.feed = lambda: waiting  # type: ignore[method-assign]
    run(None, save=None)
    assert [event.wait_seconds for event in run.of(Stepped)] == [1.0, 0.5, 0.0], (
        "the second batch was asked for before the first step was read"
    )


def warm() -> Stage:
    """A stage whose step is compiled."""
    stage = tiny.small_stage()
    placement = stage.step.placement
    stage.step.prepare(stage.state, placement.put_batch(tiny.points()), placement.put(stage.controls(0, 1.0)))
    return stage


def test_a_batch_left_on_the_host_is_noticed() -> None:
    """Nothing is copied to the device behind our back inside the step."""
    run = Run(stage=warm())
    batch = tiny.points()
    unplaced = iter([tiny.OnDevice(batch, 8, 8, batch["example_id"])])  # type: ignore[arg-type]
    run.feed = lambda: unplaced  # type: ignore[method-assign]
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(None)


def test_batches_that_end_early() -> None:
    run = Run(available=4)
    with pytest.raises(DataError, match="the batches ended after step 4 of 6"):
        run(None)
    assert [event.step for event in run.of(Stepped)] == [1, 2, 3, 4]


# -- decisions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "ending"), [(Stop("enough"), "run"), (NextPhase("enough"), "phase"), (Rollback(0.25, "worse"), "rollback")], ids=str
)
def test_decisions_that_end_the_phase(decision: Any, ending: str) -> None:
    run = Run()([3.0, 3.0, 3.0], [Script(answers=(Continue(), decision))], evaluate_every=2)
    assert run.events[-1] == Decided(4, decision) and len(run.of(Decided)) == 1
    assert run.progress.ending == ending and run.progress.step == 4
    assert [step for step, _, _ in run.saved] == [2] if ending == "rollback" else [2, 4], "the end of a phase is saved, a failure is not"
    assert ending == "rollback" or run.saved[-1][2]["ending"] == ending, "a resumed run does not ask again"
    assert run.progress.rollback_factor == (0.25 if ending == "rollback" else 1.0)


def test_the_rate_is_scaled_from_the_next_step_on() -> None:
    run = Run()([1.0] * 3, [Script(answers=(ScaleRate(0.5, "slow down"), ScaleRate(0.1, "more")))], evaluate_every=2)
    np.testing.assert_allclose([event.learning_rate for event in run.of(Stepped)], 0.01 * np.array([1, 1, 0.5, 0.5, 0.05, 0.05]), rtol=1e-5)
    assert run.progress.rate_scale == pytest.approx(0.05) and len(run.of(Decided)) == 2
    assert run.stage.step.compilations == 1


def test_the_strongest_of_several_decisions_holds() -> None:
    rules = [Script(answers=(answer,)) for answer in (ScaleRate(0.5, "a"), Stop("b"), Continue(), NextPhase("c"), Rollback(0.5, "d"))]
    run = Run()([1.0] * 3, rules, evaluate_every=2)
    assert run.of(Decided) == [Decided(2, Stop("b"))]
    assert run.progress.rules == [{"asked": 1}] * 5, "all were asked"


def test_rules_see_a_report() -> None:
    seen: list[Report] = []

    class Witness(StopRule):
        def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
            seen.append(report)
            return memory, Continue()

    run = Run(progress=Progress(step=10, phase=1, skipped=3))
    run([2.0, 1.0], [Witness()], evaluate_every=3)
    first, second = seen
    assert (first.step, first.phase_step, second.step, second.phase_step) == (13, 3, 16, 6)
    assert first.metrics == {"loss": 2.0} and first.best == "loss" and not first.higher_is_better and first.skipped == 3
    assert first.train_loss == run.of(Stepped)[2].loss and 0 < first.seconds < second.seconds


# -- interruption and divergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Interrupted, Preempted])
def test_interruption_saves_and_then_raises(error: type[Exception]) -> None:
    run = Run()
    with pytest.raises(error, match="stopped after step 3"):
        run(None, interrupted=lambda step: error if step == 3 else None)
    assert run.log[-4:] == ["batch 2", "Stepped 3", "save 3", "Saved 3"] or run.log[-3:] == ["Stepped 3", "save 3", "Saved 3"]
    assert [line for line in run.log if line.startswith("batch")] == ["batch 0", "batch 1", "batch 2"]
    assert run.saved[0][2]["ending"] == "", "the phase goes on when it is resumed"


def test_interruption_without_a_place_to_save() -> None:
    with pytest.raises(Interrupted):
        Run()(None, save=None, interrupted=lambda step: Interrupted if step == 2 else None)


def spoilt_from(first: int) -> Callable[[int], tiny.Batch]:
    def batch(number: int) -> tiny.Batch:
        made = tiny.points(8, number)
        if number >= first:
            made["x"][2] = np.inf
        return made

    return batch


def test_too_many_bad_steps_in_a_row() -> None:
    run = Run(batches=spoilt_from(2), steps=20)
    reference = tiny.small_stage()
    tiny.steps(reference, [tiny.points(8, 0), tiny.points(8, 1)])
    with pytest.raises(DivergedError) as caught:
        run(None, skip_limit=3)
    assert caught.value.exit_code == 71
    text = str(caught.value)
    assert "not finite in 3 steps in a row, up to step 5" in text and str(list(range(32, 40))) in text, "the rows of batch 4"
    assert [event.finite for event in run.of(Stepped)] == [True, True, False, False, False], "the last is told before the error"
    tiny.equal(run.stage.state.params, tiny.host(reference.state.params))
    assert run.progress.skipped == 3


def test_bad_steps_apart_are_skipped() -> None:
    run = Run(batches=lambda number: spoilt_from(0 if number % 2 else 99)(number))
    run([1.0], skip_limit=2)
    assert run.progress.skipped == 3 and [event.finite for event in run.of(Stepped)] == [True, False] * 3
    assert np.isnan(run.of(Stepped)[1].loss) or np.isinf(run.of(Stepped)[1].loss)


def test_norms_by_part_are_told_at_evaluations() -> None:
    run = Run()([1.0, 2.0], evaluate_every=3)
    assert [event.step for event in run.of(Stepped) if event.part_norms] == [3, 6]
    for event in (run.of(Stepped)[2], run.of(Stepped)[5]):
        np.testing.assert_allclose(np.linalg.norm(list(event.part_norms.values())), event.gradient_norm, rtol=1e-6)
