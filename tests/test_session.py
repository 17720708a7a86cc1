"""Compiled programs are used again where a phase differs in traced numbers alone, and never where it differs in more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxtune.experiment import load_experiment
from jaxtune.prepare import prepare
from jaxtune.session import Session
from jaxtune.training.loop import Progress
from jaxtune.training.stage import Stage


@contextmanager
def counted() -> Iterator[list[str]]:
    """Everything that XLA compiles meanwhile."""
    found: list[str] = []

    def listen(event: str, seconds: float, **more: Any) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class Run:
    """The first phase of an experiment, by hand: a step, an evaluation, an adjustment."""

    def __init__(self, file: Path, overrides: Sequence[str]):
        experiment = load_experiment(file, overrides)
        self.session = Session.open(prepare(experiment), experiment.mesh.build())
        self.progress = Progress()
        self.stage: Stage = self.session.start_phase(0, *self.session.load_base(), None)

    def adjust(self, *words: str) -> None:
        self.progress.adjustments.append(self.session.consider(self.progress, words))
        self.progress.ending = "adjust"
        self.stage = self.session.adjust(self.stage, self.progress)

    def step(self) -> tuple[float, float]:
        """(rate, greatest change of the head's kernel)."""
        session, progress, stage = self.session, self.progress, self.stage
        session.compile(stage, 0)
        before = {key: np.array(value) for key, value in stage.state.trainable.items()}
        controls = stage.controls(progress.phase_step, progress.rate_scale)
        with session.feed("train", session.plan(0, progress.order), progress.batch, progress.batch + 1, training=True) as feed:
            (batch,) = list(feed)
            stage.state, report = stage.step(stage.state, batch.arrays, session.placement.put(controls))
        assert bool(report["finite"])
        progress.step, progress.phase_step = progress.step + 1, progress.phase_step + 1
        session.evaluate("validation", stage.blueprint, stage.state.evaluated, stage.state.variables)
        changed = max(float(np.abs(np.asarray(stage.state.trainable[key]) - value).max()) for key, value in before.items())
        return float(controls["optimizer"]["rate"]), changed


def test_an_adjusted_rate_compiles_nothing(tiny_experiment: Path) -> None:
    run = Run(tiny_experiment, ["task.loss=cross_entropy"])
    program = run.stage.step
    assert run.step()[0] == pytest.approx(1e-2)
    run.adjust("rate_scale=0.5")
    rate, changed = run.step()
    assert rate == pytest.approx(5e-3) and 0 < changed < 2e-2
    with counted() as loading:  # a fresh head is made by a program each time that the base is loaded
        run.session.load_base()
    with counted() as compiled:
        run.adjust("phases.0.optimizer.schedule.rate=4e-4", "phases.0.optimizer.beta1=0.8", "phases.0.epochs=1.5")
        rate, changed = run.step()
    assert len(compiled) == len(loading)  # not even the small things around the step
    assert rate == pytest.approx(2e-4) and 0 < changed < 1e-3
    assert run.stage.step is program and program.compilations == 1

    run.adjust("data.batch_size=8")
    run.step()
    assert run.stage.step is program and program.compilations == 2  # the same step for another shape
    run.adjust('phases.0.train=["head.*", "pooler.*"]')
    run.step()
    assert run.stage.step is not program and run.stage.step.compilations == 1


def test_what_another_phase_trains_decides_the_precision_here(tiny_experiment: Path) -> None:
    """Frozen parameters are bfloat16 unless a later phase trains them: an adjustment of that phase is another program for this one."""
    run = Run(tiny_experiment, ["task.loss=cross_entropy", "model.dtype=bfloat16"])
    run.step()
    program = run.stage.step
    run.adjust('phases.1.train=["head.*"]')
    run.step()
    assert run.stage.step is not program and run.stage.step.compilations == 1
