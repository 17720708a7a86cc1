"""Every save of a run of two phases can be resumed to the same bits; and what a change of phase and a rollback mean for what comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from jaxtune.checkpoint.store import Store
from jaxtune.models.family import DropoutRates
from jaxtune.training.loop import Goal, Progress, Schedule, train_phase
from jaxtune.training.stage import Stage
from jaxtune.training.state import TrainState, abstract, from_arrays, to_arrays
from jaxtune.training.stopping.base import NextPhase, Rollback, ScaleRate, StopRule
from jaxtune.training.stopping.early_stopping import EarlyStopping
from jaxtune.training.stopping.plateau import Plateau


@dataclass(frozen=True)
class Whole:
    """What a run of two phases was: its events without times, its last state and progress."""

    events: list[Any]
    state: Any
    progress: dict[str, Any]


RULES: list[list[StopRule]] = [
    [EarlyStopping(patience=2, min_delta=10.0), Plateau(patience=1, min_delta=10.0)],
    [Plateau(patience=2, min_delta=10.0)],
]
VALIDATION = tiny.points(64, seed=1000)
STEPS = (8, 4)


class TwoPhases:
    """The head, ended early by its rules; then everything. With dropout, an average and one bad batch."""

    def __init__(self) -> None:
        self.programs: dict[int, Any] = {}

    def stage(self, phase: int, previous: Stage | None = None) -> Stage:
        train = [["head.*"], ["*"]][phase]
        rates = DropoutRates(hidden=0.3)
        made = tiny.small_stage(
            train, optimizer=tiny.adamw(0.05), rates=rates, average=0.8, seed=7, previous=None if previous is None else previous.state
        )
        if previous is not None:
            params = {key: jax.numpy.array(value) for key, value in previous.state.params.items()}
            made.state = from_arrays(made.state, {"params": params})
        made.step.programs = self.programs.setdefault(phase, made.step.programs)
        return made

    def run(self, store: Store | None = None, start: tuple[Store, int] | None = None) -> Whole:
        events: list[Any] = []
        progress = Progress()
        stage = self.stage(0)
        if start is not None:
            progress = Progress(**start[0].meta(start[1])["progress"])
            stage = self.stage(progress.phase)
            everything = frozenset(stage.state.params)
            stage.state = from_arrays(stage.state, start[0].restore(start[1], abstract(to_arrays(stage.state, everything))).arrays)
        while True:
            if not progress.ending:
                self.phase(stage, progress, events, store)
            if progress.ending == "run" or progress.phase == 1:
                return Whole(events, tiny.host(stage.state), {k: v for k, v in progress.to_json().items() if k != "seconds"})
            progress.next_phase()
            stage = self.stage(progress.phase, stage)

    def phase(self, stage: Stage, progress: Progress, events: list[Any], store: Store | None) -> None:
        def evaluate(state: TrainState) -> Mapping[str, float]:
            module = stage.blueprint.build(state.evaluated, state.variables)
            loss = tiny.small_loss(module, VALIDATION, None)
            return {"loss": float(loss.mean)}

        def save(state: TrainState, progress: Progress, metric: float | None) -> None:
            if store is not None:
                store.save(progress.step, to_arrays(state, frozenset(state.params)), {"progress": progress.to_json()}, metric)

        def batches() -> Iterator[tiny.OnDevice]:
            for number in range(progress.phase_step, STEPS[progress.phase]):
                batch = tiny.points(8, 100 * progress.phase + number)
                if number == 1:
                    batch["x"][0] = np.nan
                yield tiny.put(batch, stage.step.placement)

        for event, state in train_phase(
            stage.state, stage.step, batches(), stage.controls, stage.step.placement,
            Schedule(STEPS[progress.phase], evaluate_every=1, save_every=1), progress,
            evaluate=evaluate, goal=Goal("loss", False), rules=RULES[progress.phase], save=save,
        ):  # fmt: skip
            stage.state = state
            events.append(tuple(getattr(event, f.name) for f in fields(event) if f.name not in ("seconds", "wait_seconds", "compiled")))


def test_resume_from_every_save_is_bit_exact(tmp_path: Path) -> None:
    """Parameters, optimizer, average, key, counters, best, patience and the phase: all of it lies in the checkpoint."""
    runs = TwoPhases()
    store = Store(tmp_path / "checkpoints", keep_latest=100, best="min")
    whole = runs.run(store)
    store.wait()
    saved = store.steps()
    assert saved == list(range(1, 8)), "phase 0 ends early after 3 of 8 steps, phase 1 after its 4"
    assert whole.progress["phase"] == 1 and whole.progress["skipped"] == 1 and whole.state.skipped == 2 and whole.progress["rate_scale"] < 1
    assert {store.meta(step)["progress"]["phase"] for step in saved} == {0, 1}
    decided = [event for event in whole.events if any(isinstance(part, NextPhase | ScaleRate) for part in event)]
    assert len(decided) >= 3
    for step in saved:
        again = runs.run(start=(store, step))
        tiny.trees_equal(again.state, whole.state)
        assert again.progress == whole.progress
        assert str(again.events) == str(whole.events[len(whole.events) - len(again.events) :]), f"from step {step}"
    store.close()


# -- progress ---------------------------------------------------------------------------------------------------------------


def test_a_phase_starts_with_its_own_rate() -> None:
    """A plateau belongs to its phase, a rollback to the run."""
    progress = Progress(step=9, phase_step=9, skipped=2, rules=[{"waited": 1}], rolled_back_scale=0.5, rate_scale=0.5)
    progress.note(ScaleRate(0.1, "plateau"), False)
    assert progress.rate_scale == pytest.approx(0.05) and progress.ending == ""
    progress.note(NextPhase("done"), False)
    progress.next_phase()
    assert progress == Progress(step=9, phase=1, rate_scale=0.5, rolled_back_scale=0.5)


def test_a_rollback_lowers_the_rate_for_good() -> None:
    progress = Progress(step=9, phase=1, phase_step=4, rate_scale=0.8, rules=[{"rollbacks": 1}], seconds=30.0, best=1.0, best_step=7)
    progress.note(Rollback(0.25, "worse"), True)
    assert progress.ending == "rollback", "also at the last step of a phase"
    earlier = Progress(step=7, phase=1, phase_step=2, rules=[{"rollbacks": 0}], seconds=20.0, best=1.0, best_step=7)
    again = progress.go_on_from(earlier)
    assert (again.step, again.phase_step, again.seconds, again.ending) == (7, 2, 30.0, "")
    assert again.rate_scale == pytest.approx(0.2) and again.rolled_back_scale == 0.25
    assert again.rules == [{"rollbacks": 1}], "it must not roll back for ever"


def test_a_rollback_into_an_earlier_phase_keeps_that_phases_rules() -> None:
    progress = Progress(step=9, phase=1, phase_step=4, rules=[{"rollbacks": 1}], ending="rollback", rollback_factor=0.5)
    again = progress.go_on_from(Progress(step=5, phase_step=5, rules=[{"best": 1.0}, {"waited": 2}], ending="phase"))
    assert again.phase == 0 and again.rules == [{"best": 1.0}, {"waited": 2}]
    assert again.ending == "phase", "its phase had ended: the next one starts again"
