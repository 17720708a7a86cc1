"""jaxtune's side: `jaxtune.run` for whole trainings; for bare steps the run's parts on a session whose training split is full rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from encoder.job import Job, Marks, Split, read_splits, versions

import jaxtune
from jaxtune.experiment import Experiment
from jaxtune.parallel import hosts
from jaxtune.prepare import Prepared, prepare
from jaxtune.recorder import PhaseStarted, Recorder
from jaxtune.run import begin, open_store, train_one
from jaxtune.run_folder import RunFolder
from jaxtune.session import Session
from jaxtune.training.loop import Goal, Stepped
from jaxtune.training.signals import Signals
from jaxtune.training.watchdog import Watchdog

EXPERIMENT = Path(__file__).parent / "experiment.yaml"


def experiment_of(*, batch: int, max_tokens: int, extra: tuple[str, ...] = ()) -> Experiment:
    """The experiment file with the job's sizes."""
    return jaxtune.load_experiment(EXPERIMENT, [f"data.batch_size={batch}", f"data.max_tokens={max_tokens}", *extra])


def of_job(job: Job) -> Experiment:
    length = f"steps={job.steps}" if job.mode != "epochs" else f"epochs={job.epochs}"
    optimizer = "phases.0.optimizer"
    changes = [f"model.dtype={job.precision}", f"seed={job.seed}", f"phases.0.{length}"]
    if job.mode != "epochs":
        changes.append("phases.0.epochs=null")
    changes += [
        f"{optimizer}.weight_decay={job.weight_decay}",
        f"{optimizer}.schedule.peak={job.rate}",
        f"{optimizer}.schedule.warmup={job.warm_up}",
    ]
    return experiment_of(batch=job.batch, max_tokens=job.max_tokens, extra=tuple(changes))


def encoded(prepared: Prepared) -> dict[str, Split]:
    """The splits as the other sides read them."""
    splits = {}
    for name, examples in prepared.splits.items():
        rows = [examples.row(i) for i in range(len(examples))]
        labels = examples.column("label")
        splits[name] = Split([row["tokens"] for row in rows], labels)
    return splits


def full_rows(prepared: Prepared, width: int) -> Prepared:
    """Only the training rows that fill the width, and nothing to judge on."""
    train = prepared.splits["train"]
    assert train.lengths is not None
    kept = train.subset(train.lengths == width)
    return replace(prepared, splits={"train": kept}, facts={**prepared.facts, "widths": (width,)})


def check_same(job: Job, prepared: Prepared) -> None:
    """All sides must train on the same token ids."""
    mine, theirs = encoded(prepared), read_splits(job.data)
    same = mine.keys() == theirs.keys() and all(
        len(split) == len(theirs[name])
        and (split.labels == theirs[name].labels).all()
        and all((a == b).all() for a, b in zip(split.tokens, theirs[name].tokens, strict=True))
        for name, split in mine.items()
    )
    assert same, f"{job.data} does not hold what jaxtune encodes: make it anew"


def bare_steps(session: Session, folder: Path, watch: Callable[[Any], None]) -> dict[str, float]:
    """The training part of a run, with its checkpoint, rows and watchdog, without what comes after the last step."""
    experiment = session.prepared.experiment
    goal = Goal(session.prepared.task.best, session.prepared.task.higher_is_better)
    with (
        RunFolder.create(folder, experiment.name) as run_folder,
        open_store(experiment, run_folder, goal) as store,
        Signals() as signals,
        Watchdog(run_folder.path) as watchdog,
        Recorder(run_folder, experiment, store, watch) as recorder,
    ):
        stage, progress = begin(session, store, recorder, watchdog)
        train_one(session, stage, store, progress, goal, signals, watchdog, recorder)
        store.wait()
        return recorder.speed(progress)


def main() -> None:
    job = Job.read()
    marks, folder, experiment = Marks(), Path(job.folder), of_job(job)
    per_epoch = -(-len(read_splits(job.data)["train"]) // job.batch)

    def watch(event: Any) -> None:
        if isinstance(event, PhaseStarted):
            marks.start()
        elif isinstance(event, Stepped):
            marks.step(event.compiled or event.step == 1)
            if job.mode == "epochs" and event.step % per_epoch == 0:
                marks.epoch()

    hosts.start()
    prepared = prepare(experiment)
    check_same(job, prepared)
    outcome: dict[str, Any] = {}
    if job.mode == "epochs":
        result = jaxtune.run(experiment, runs_dir=folder, watch=watch)
        outcome["accuracy"] = {split: found["accuracy"] for split in ("validation", "test") if (found := result.numbers[split])}
        outcome["told"] = {
            name: result.numbers[name] for name in ("examples_per_second", "tokens_per_second", "data_wait_share", "compile_seconds")
        }
    else:
        session = Session.open(full_rows(prepared, job.max_tokens), experiment.mesh.build())
        if job.mode == "anatomy":
            from encoder.anatomy import anatomy

            outcome["anatomy"] = anatomy(session, job, folder)
        else:
            outcome["told"] = bare_steps(session, folder, watch)
    job.finish({**outcome, **marks.outcome(), "versions": versions("jaxtune", "jax", "jaxlib", "flax", "optax", "numpy")})


if __name__ == "__main__":
    main()
