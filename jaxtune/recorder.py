"""Everything a run writes down as it goes: metrics rows, events with reasons, the state, and what a watching panel is told."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxtune.checkpoint.store import Restored, Store
from jaxtune.evaluation.generation import Answered
from jaxtune.experiment import Experiment
from jaxtune.parallel import hosts
from jaxtune.run_folder import RunFolder
from jaxtune.session import Compiled, Session
from jaxtune.tracking.base import Trackers
from jaxtune.training.loop import Decided, Evaluated, Progress, Saved, Stepped
from jaxtune.training.parameters import Row
from jaxtune.training.progress import Leg
from jaxtune.training.stage import Stage


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins (or goes on): what trains in it, and for how long."""

    run: str
    phase: int
    step: int  # of the run, where the phase began
    done: int  # steps of the phase that are behind it
    legs: tuple[Leg, ...]
    best: str  # the metric that decides
    table: tuple[Row, ...]

    @property
    def total_steps(self) -> int:
        return sum(leg.steps for leg in self.legs)


@dataclass(frozen=True)
class Resumed:
    """The run goes on from a checkpoint."""

    step: int
    rejected: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Adjusted:
    """Somebody changed the run; with `problems` it was refused."""

    step: int
    changes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The best checkpoint on a whole split, at the end."""

    split: str
    step: int
    metrics: Mapping[str, Any]


class Recorder:
    """Knows the folder's files; the loop does not."""

    def __init__(self, folder: RunFolder, experiment: Experiment, store: Store, watch: Callable[[Any], None]):
        self.folder, self.experiment, self.store, self.watch = folder, experiment, store, watch
        self.trackers: Trackers | None = None
        self.durable: int | None = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.trackers is not None:
            self.trackers.close()

    def open(self, step: int) -> None:
        """Opens metrics.jsonl and the trackers; rows after `step` are taken back."""
        if hosts.is_primary():
            self.folder.evaluations.drop_after(step)
            self.folder.samples.drop_after(step)
            self.trackers = Trackers(self.experiment.tracking, self.folder.path, self.experiment.model_dump(mode="json"), step)

    # -- what happens ---------------------------------------------------------------------------------------------------

    def phase(self, session: Session, stage: Stage, progress: Progress) -> None:
        legs = tuple(
            Leg(", ".join(phase.train), session.steps(number, progress), session.plan(number).steps())
            for number, phase in enumerate(session.prepared.experiment.phases)
        )
        started = PhaseStarted(
            self.experiment.name,
            progress.phase,
            progress.step - progress.phase_step,
            progress.phase_step,
            legs,
            self.experiment.task.best,
            stage.selection.table,
        )
        self.folder.event("phase", step=progress.step, phase=progress.phase, table=[dataclasses.asdict(row) for row in started.table])
        self.watch(started)

    def compiled(self, compiled: Compiled) -> None:
        self.folder.event(
            "compiled",
            seconds=compiled.seconds,
            memory=dataclasses.asdict(compiled.memory),
            flops=compiled.flops,
            rows=compiled.rows,
            width=compiled.width,
        )
        self.watch(compiled)

    def resumed(self, found: Restored) -> None:
        self.folder.set_state("running", restarts=self.folder.state().get("restarts", 0) + 1, rejected=[list(r) for r in found.rejected])
        self.folder.event("resumed", step=found.step, rejected=[list(r) for r in found.rejected])
        self.watch(Resumed(found.step, found.rejected))

    def rolled_back(self, step: int, to: int, rate_scale: float) -> None:
        """Rows after `to` are taken back as on a resume, so that every step has one row; the event tells what was there."""
        self.folder.event("rolled_back", step=step, to=to, rate_scale=rate_scale)
        if self.trackers is not None:
            self.trackers.close()
            self.open(to)
        self.watch(Resumed(to, ()))

    def adjusted(self, step: int, changes: Sequence[str], problems: Sequence[str]) -> None:
        """What somebody asked of the run, and whether it was taken up."""
        self.folder.event("refused" if problems else "adjusted", step=step, changes=list(changes), problems=list(problems))
        self.watch(Adjusted(step, tuple(changes), tuple(problems)))

    def event(self, event: Stepped | Evaluated | Saved | Decided) -> None:
        if isinstance(event, Stepped):
            self.stepped(event)
        elif isinstance(event, Evaluated):
            self.row({"step": event.step, "split": "validation", **event.metrics, "best": event.is_best})
        elif isinstance(event, Saved):
            self.folder.event("saving", step=event.step, stall_seconds=event.seconds)
        else:
            self.folder.event("decision", step=event.step, decision=type(event.decision).__name__, **dataclasses.asdict(event.decision))
        self.note_durable()
        self.watch(event)

    def stepped(self, event: Stepped) -> None:
        self.row(
            {
                "step": event.step, "split": "train", "loss": event.loss, "learning_rate": event.learning_rate,
                "gradient_norm": event.gradient_norm, "examples": event.examples, "tokens": event.tokens,
                "seconds": event.seconds, "wait_seconds": event.wait_seconds, "compiled": event.compiled,
                **({"gradient_norm_by_part": event.part_norms} if event.part_norms else {}),
            }
        )  # fmt: skip
        if not event.finite:
            self.folder.event("skipped", step=event.step, loss=event.loss, gradient_norm=event.gradient_norm)

    def slices(self, step: int, table: Sequence[Mapping[str, Any]]) -> None:
        """How an evaluation turned out by class and by length."""
        if hosts.is_primary():
            self.folder.evaluations.append({"step": step, "split": "validation", "slices": list(table)})

    def answered(self, step: int, answered: Answered) -> None:
        """What the model wrote, row by row."""
        if hosts.is_primary():
            for row in answered.rows:
                self.folder.samples.append({"step": step, **row})

    def result(self, split: str, step: int, metrics: Mapping[str, Any]) -> None:
        self.folder.event("measured", split=split, step=step, **{k: v for k, v in metrics.items() if isinstance(v, int | float)})
        self.watch(Measured(split, step, metrics))

    def row(self, row: Mapping[str, Any]) -> None:
        if self.trackers is not None:
            self.trackers.log({**row, "time": time.time()})

    def note_durable(self) -> None:
        """state.json tells the last step that would survive a power cut."""
        durable = self.store.last_durable
        if durable is not None and durable.step != self.durable:
            self.durable = durable.step
            self.folder.set_state("running", last_durable_step=durable.step)
            self.folder.event("durable", step=durable.step)
            self.watch(durable)

    # -- sums -----------------------------------------------------------------------------------------------------------

    def speed(self, progress: Progress) -> dict[str, float]:
        """Of all steps of the run, over restarts; steps that had to be compiled first are left out of the rates."""
        rows = [row for row in self.folder.metrics.read() if row.get("split") == "train"]
        timed = [row for row in rows if not row["compiled"]]
        seconds = max(sum(row["seconds"] for row in timed), 1e-9)
        return {
            "seconds": progress.seconds,
            "examples_per_second": sum(row["examples"] for row in timed) / seconds,
            "tokens_per_second": sum(row["tokens"] for row in timed) / seconds,
            "data_wait_share": sum(row["wait_seconds"] for row in timed) / seconds,
            "compile_seconds": sum(event["seconds"] for event in self.folder.events() if event["event"] == "compiled"),
        }

    def peak_memory(self) -> int:
        """Bytes: of the fullest device, or of this process on the CPU."""
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        found = max(int(s.get("peak_bytes_in_use", 0)) for s in stats)
        scale = 1 if sys.platform == "darwin" else 1024
        return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
