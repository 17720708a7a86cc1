"""Where the time of a jaxtune step goes outside the compiled program: the program alone against the loop, and every host part by itself.

The host parts of a step run while the device computes the step before, so their sum is an upper bound of what they can cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
from encoder.job import Job

from jaxtune.data.pipeline import batches
from jaxtune.recorder import Recorder
from jaxtune.run import Goal, ignore, open_store
from jaxtune.run_folder import RunFolder
from jaxtune.session import Session
from jaxtune.training.loop import Progress, Schedule, Stepped, train_phase
from jaxtune.training.stage import Stage
from jaxtune.training.watchdog import Watchdog

ROUNDS, REPEATS = 3, 100


def anatomy(session: Session, job: Job, folder: Path) -> dict[str, Any]:
    """Milliseconds; program and loop alternate, so that a neighbour's load meets both."""
    stage = session.start_phase(0, *session.load_base(), None)
    session.compile(stage, 0)
    steps = max(2, job.steps // ROUNDS)
    alone: list[float] = []
    dispatch: list[float] = []
    looped: list[float] = []
    waited: list[float] = []
    for _ in range(ROUNDS):
        program_alone(session, stage, steps, alone, dispatch)
        loop(session, stage, steps, looped, waited)
    step = median(alone)
    host = host_parts(session, stage, folder)
    return {
        "program_ms": step * 1e3,
        "loop_ms": median(looped) * 1e3,
        "loop_over_program": median(looped) / step,
        "dispatch_ms": median(dispatch) * 1e3,
        "data_wait_share": sum(waited) / sum(looped),
        "host_parts_ms": host,
        "main_thread_share": sum(ms for name, ms in host.items() if not name.startswith("feed thread")) / (step * 1e3),
        "control_arrays": len(jax.tree.leaves(stage.controls(0, 1.0))),
    }


def program_alone(session: Session, stage: Stage, steps: int, seconds: list[float], dispatch: list[float]) -> None:
    """The compiled step on one batch that stays on the device; the first call is not counted."""
    with session.feed("train", session.plan(0), 0, 1, training=True) as feed:
        batch = next(feed).arrays
    scalars = session.placement.put(stage.controls(0, 1.0))
    program = stage.step.prepare(stage.state, batch, scalars)
    for number in range(steps + 1):
        start = time.perf_counter()
        stage.state, report = program(stage.state, batch, scalars)
        called = time.perf_counter()
        jax.device_get(report)
        if number:
            seconds.append(time.perf_counter() - start)
            dispatch.append(called - start)


def loop(session: Session, stage: Stage, steps: int, seconds: list[float], waited: list[float]) -> None:
    """The same through feed and loop."""
    with session.feed("train", session.plan(0), 0, steps + 1, training=True) as feed:
        events = train_phase(stage.state, stage.step, feed, stage.controls, session.placement, Schedule(steps + 1), Progress())
        for event, state in events:
            stage.state = state
            assert isinstance(event, Stepped)
            if event.step > 1:
                seconds.append(event.seconds)
                waited.append(event.wait_seconds)


def host_parts(session: Session, stage: Stage, folder: Path) -> dict[str, float]:
    experiment = session.prepared.experiment
    with batches(session.prepared.splits["train"], session.plan(0), threads=0) as source:
        host_batch = next(source)
        ready = session.place(host_batch)
        controls = stage.controls(1, 1.0)
        scalars = session.placement.put(controls)
        stage.state, report = stage.step(stage.state, ready.arrays, scalars)
        jax.block_until_ready(report)
        told = Stepped(1, 0.5, 1e-4, 1.0, True, 16, 4096, 1.0, 0.0, False)
        with (
            RunFolder.create(folder, "anatomy") as run_folder,
            open_store(experiment, run_folder, Goal("accuracy", True)) as store,
            Watchdog(run_folder.path) as watchdog,
            Recorder(run_folder, experiment, store, ignore) as recorder,
        ):
            recorder.open(0)

            def section() -> None:
                with watchdog.section("step"):
                    store.poll()

            def guard() -> None:
                with jax.transfer_guard("disallow"):
                    pass

            parts: dict[str, Callable[[], Any]] = {
                "controls": lambda: stage.controls(3, 1.0),
                "put controls": lambda: jax.block_until_ready(session.placement.put(controls)),
                "find program": lambda: stage.step.prepare(stage.state, ready.arrays, scalars),
                "transfer guard": guard,
                "read report": lambda: jax.device_get(report),
                "record row": lambda: recorder.event(told),
                "watchdog and store": section,
                "feed thread: make batch": lambda: next(source),
                "feed thread: put batch": lambda: jax.block_until_ready(session.place(host_batch).arrays),
            }
            return {name: timed(part) for name, part in parts.items()}


def timed(part: Callable[[], Any]) -> float:
    """Median milliseconds."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        part()
        found.append(time.perf_counter() - start)
    return round(median(found) * 1e3, 4)
