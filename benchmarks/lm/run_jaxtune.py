"""jaxtune's side: the training part of a run, with its checkpoints, rows and watchdog, without what comes after the last step."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from encoder.run_jaxtune import bare_steps
from lm.job import Batches, Job, Marks

import jaxtune
from jaxtune.data.pipeline import batches
from jaxtune.experiment import Experiment
from jaxtune.parallel import hosts
from jaxtune.prepare import prepare
from jaxtune.session import Session
from jaxtune.training.loop import Stepped

EXPERIMENT = Path(__file__).resolve().parents[2] / "configs" / "lm" / "smollm2_headlines.yaml"


def experiment_of(model: Path | str, precision: str, *, rows: int, tokens: int, steps: int, rate: float, weight_decay: float) -> Experiment:
    """The experiment file with the sizes of the benchmark, a constant rate, and nothing but training."""
    optimizer = f"{{kind: adamw, weight_decay: {weight_decay}, clip_norm: 1.0, schedule: {{kind: constant, rate: {rate}}}}}"
    changes = [
        f"model.base={model}", f"model.dtype={precision}", f"data.batch_size={rows}", f"data.max_tokens={tokens}", f"data.widths=[{tokens}]",
        f"phases.0.steps={steps}", f"phases.0.optimizer={optimizer}", "evaluation.answers=null", "evaluation.every_steps=null",
    ]  # fmt: skip
    return jaxtune.load_experiment(EXPERIMENT, changes)


def open_session(experiment: Experiment) -> Session:
    """The training rows alone: there is nothing to judge on."""
    prepared = prepare(experiment)
    train_only = replace(prepared, splits={"train": prepared.splits["train"]})
    return Session.open(train_only, experiment.mesh.build())


def planned(session: Session, steps: int) -> Batches:
    """The batches of the run's first steps, as it will train on them."""
    plan = session.plan(0)
    with batches(session.prepared.splits["train"], plan, stop=steps, seed=plan.seed) as found:
        arrays = [batch.arrays for batch in found]
    names = ("tokens", "segment_ids", "token_weight")
    return Batches(*(np.stack([np.asarray(one[name]) for one in arrays]) for name in names))


def main() -> None:
    job = Job.read()
    marks, losses, told = Marks(), [], Batches.read(job.data)
    _, rows, tokens = told.tokens.shape
    experiment = experiment_of(
        job.model, job.precision, rows=rows, tokens=tokens, steps=job.steps, rate=job.rate, weight_decay=job.weight_decay
    )
    hosts.start()
    session = open_session(experiment)
    mine = planned(session, job.steps)
    same = all(np.array_equal(getattr(mine, name), getattr(told, name)) for name in ("tokens", "mask", "weight"))
    assert same, f"{job.data} does not hold what jaxtune trains on: make it anew"

    def watch(event: Any) -> None:
        if isinstance(event, Stepped):
            marks.step(event.compiled or event.step == 1)
            losses.append(event.loss)

    marks.start()
    bare_steps(session, Path(job.folder), watch)
    job.finish(marks, losses, "jaxtune", "jax", "jaxlib", "flax", "optax", "numpy")


if __name__ == "__main__":
    main()
