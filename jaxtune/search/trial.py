"""One training of a search: the story of `run.py` without a run folder's papers, watched at its evaluations and perhaps ended there.

It trains, evaluates, stops and rolls back exactly as `jaxtune train` would, so its number is the number of that run. It keeps a checkpoint
only when it runs long, and none once it has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtune.checkpoint.store import Store
from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError, DivergedError, JaxtuneError, NoCheckpointError
from jaxtune.core.files import Rows
from jaxtune.core.heap import Heap
from jaxtune.search.ledger import Ended, Outcome
from jaxtune.search.workbench import Workbench
from jaxtune.session import Session
from jaxtune.training.loop import Evaluated, Goal, Progress, Schedule, Stepped, train_phase
from jaxtune.training.stage import Stage
from jaxtune.training.stopping import STOP_RULES
from jaxtune.training.watchdog import Watchdog


@dataclass
class Training:
    """
    Attributes:
        folder: of this training alone; it is there while the training is under way.
        save_seconds: at most this often is it saved.
        judge: (step, best so far) -> why the training ends here, or "".
    """

    workbench: Workbench
    session: Session
    folder: Path
    watchdog: Watchdog
    save_seconds: float
    interrupted: Callable[[int], type[JaxtuneError] | None]
    judge: Callable[[int, float], str] = lambda step, value: ""
    store: Store | None = None
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        task = self.session.prepared.task
        self.goal = Goal(task.best, task.higher_is_better)
        self.rolls_back = any(may_roll_back(rule) for phase in self.session.prepared.experiment.phases for rule in phase.stopping)
        self.evaluations = Rows(self.folder / "evaluations.jsonl")
        self.reason = ""
        self.began = time.monotonic()

    def run(self) -> Outcome:
        """Trains to the end, or to where `judge` ends it.

        Raises:
            Preempted, Interrupted: a signal came; the training is saved.
            JaxtuneError: it cannot be trained.
        """
        self.session.check()
        if "validation" not in self.session.prepared.splits:
            raise ConfigError("data.split: a search compares validation numbers, but there is no validation split; give it a share")
        try:
            stage, progress = self.begin()
            while not self.reason:
                if not progress.ending:
                    self.phase(stage, progress)
                if progress.ending == "rollback":
                    stage, progress = self.roll_back(progress)
                elif progress.ending == "run" or progress.phase + 1 == len(self.session.prepared.experiment.phases):
                    break
                elif not self.reason:
                    before = stage.state
                    progress.next_phase()
                    stage = self.session.start_phase(progress.phase, before.params, before.variables, before)
            return self.outcome(progress)
        finally:
            if self.store is not None:
                self.store.__exit__(JaxtuneError, None, None)  # a save may be under way; it ends, and a failure of it is logged

    def begin(self) -> tuple[Stage, Progress]:
        """From the base, or from this training's own checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.watchdog.section("load"):
            found = self.resumed()
            if found is None:
                found = self.session.start_phase(0, *self.workbench.start(self.session), None), Progress()
        self.evaluations.drop_after(found[1].step)
        return found

    def resumed(self) -> tuple[Stage, Progress] | None:
        """Where an earlier life of this training was saved last; without a whole checkpoint it begins again."""
        if not (self.folder / "checkpoints").is_dir() or self.open_store().is_empty:
            return None
        try:
            return self.session.resume(self.open_store())[:2]
        except NoCheckpointError:
            return None

    def phase(self, stage: Stage, progress: Progress) -> None:
        """The rest of one phase, or until it is judged to end."""
        session, experiment = self.session, self.session.prepared.experiment
        phase, steps, every = experiment.phases[progress.phase], session.steps(progress.phase), experiment.evaluation.every_steps
        with self.watchdog.section("compile"):
            session.compile(stage, progress.phase)

        def evaluate(state: Any) -> Mapping[str, Any]:
            with self.watchdog.section("evaluation"):
                return session.evaluate("validation", stage.blueprint, state.evaluated, state.variables).metrics

        schedule = Schedule(steps, every, experiment.checkpoint.every_steps if self.rolls_back else every, phase.skip_limit)
        with session.feed("train", session.plan(progress.phase), progress.phase_step, steps, training=True) as feed:
            events = train_phase(
                stage.state, stage.step, feed, stage.controls, session.placement, schedule, progress,
                evaluate=evaluate, goal=self.goal, rules=phase.stopping, save=self.save, interrupted=self.interrupted,
            )  # fmt: skip
            heap = Heap()
            while True:
                with self.watchdog.section("step"):
                    event, state = next(events, (None, None))
                if event is None or state is None:
                    return
                stage.state = state
                heap.after_step() if isinstance(event, Stepped) else heap.after_other_work()
                if isinstance(event, Evaluated):
                    self.evaluations.append({"step": event.step, **event.metrics})
                    self.reason = self.judge(event.step, math.nan if progress.best is None else progress.best)
                    if self.reason:
                        return

    def save(self, state: Any, progress: Progress, metric: float | None) -> None:
        """Starts a checkpoint where one is due; every one that a rollback could go back to is."""
        due = time.monotonic() - self.saved_at >= self.save_seconds or self.interrupted(progress.step) is not None
        if due or self.rolls_back:
            with self.watchdog.section("save"):
                self.session.save(self.open_store(), state, progress, metric)
            self.saved_at = time.monotonic()

    def open_store(self) -> Store:
        if self.store is None:
            self.store = Store(self.folder / "checkpoints", keep_latest=1, best="max" if self.goal.higher_is_better else "min")
        return self.store

    def roll_back(self, progress: Progress) -> tuple[Stage, Progress]:
        """As in a run: the best checkpoint again, with a lower rate."""
        store = self.open_store()
        store.wait()
        step = store.best_step
        if step is None:
            raise DivergedError("it diverged before there was a checkpoint to go back to")
        store.delete_after(step)
        stage, found, _ = self.session.resume(store)
        self.evaluations.drop_after(step)
        return stage, progress.go_on_from(found)

    def outcome(self, progress: Progress) -> Outcome:
        best = next((row for row in self.evaluations.read() if row["step"] == progress.best_step), {})
        metrics = {name: value for name, value in best.items() if name != "step"}
        ended: Ended = "stopped" if self.reason else "complete"
        if progress.best is None:
            ended, self.reason = "failed", f"{self.goal.metric} was never a finite number"
        return Outcome(ended, progress.best, progress.best_step, metrics, progress.step, time.monotonic() - self.began, self.reason)


def may_roll_back(rule: Any) -> bool:
    """A rule of one's own may decide anything."""
    return getattr(rule, "action", "") == "rollback" or ":" in OneOf(STOP_RULES).kind(rule)
