"""What batches hold beside the data because a model has read it: computed once before training, and kept in the cache.

The reference of preference tuning is what the base says of both answers; a teacher's part stands in `teacher.py`. A second model beside
the one that trains would cost its memory and a forward pass at every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.core.folders import cache_folder
from jaxtune.data import cache
from jaxtune.data.examples import Examples, Ragged
from jaxtune.parallel import hosts
from jaxtune.session import Session
from jaxtune.tasks.causal_lm import CausalLM
from jaxtune.tasks.teacher import Teacher
from jaxtune.teacher import add_teacher, open_teacher

COLUMN = "reference"


def add_read(session: Session, *, training: bool = True) -> None:
    """Gives the session's examples what its task wants of other models; without `training`, only what an evaluation needs.

    Raises:
        ConfigError: more than one process trains; each would have the results of its own rows alone.
    """
    prepared = session.prepared
    teacher = check_read(session) if training else None
    if prepared.task.needs_reference:
        add_reference(session)
    if teacher is not None:
        key = {
            "teacher": teacher.model_dump(mode="json", exclude={"weight"}),
            "vocabulary": prepared.base.family.vocabulary,
            "dtype": prepared.experiment.model.dtype,
            "rows": digest(prepared.splits["train"]),
        }
        add_teacher(session, teacher, cache.fingerprint(key))


def check_read(session: Session) -> Teacher | None:
    """The task's teacher, found fit; nothing is read yet.

    Raises:
        ConfigError: it does not go together with the model, or more than one process trains.
    """
    task = session.prepared.task
    teacher = task.teacher if isinstance(task, CausalLM) else None
    if jax.process_count() > 1 and (teacher is not None or task.needs_reference):
        raise ConfigError("task: a reference or teacher is read by one process so far; use loss: orpo, no teacher, or train in one process")
    if teacher is not None:
        open_teacher(session.prepared, teacher)
    return teacher


def add_reference(session: Session) -> None:
    """The column `reference` f32[rows, 2] of every split: log-probabilities of both answers by the model as training begins."""
    prepared, model = session.prepared, session.prepared.experiment.model

    def build() -> Examples:
        rows = sum(map(len, prepared.splits.values()))
        hosts.say(f"the model as it is before training reads the {rows:,} pairs, once; its log-probabilities are kept in the cache")
        params, variables = session.load_base()
        values = np.zeros((len(prepared.scanned.records), 2), np.float32)
        for split in prepared.splits:
            plan = prepared.plan(split, divisor=session.placement.batch_ways, training=False)
            with session.feed(split, plan, stop=plan.steps()) as feed:
                found = session.evaluator(session.blueprint).infer(params, variables, feed)
            values[found.ids] = found.more["log_probability"]
        return Examples({COLUMN: values})

    key = cache.fingerprint(
        {
            **session.identity(),
            "model": model.model_dump(mode="json", include={"base", "dtype", "quantize", "adapter"}),
            "seed": prepared.experiment.seed,
            "adapter": arrays_digest(session.numbers),
            "rows": [digest(examples) for examples in prepared.splits.values()],
        }
    )
    stored, _ = cache.load_or_build(cache_folder("reference"), key, build)
    session.subject = replace(prepared, splits={name: with_columns(examples, stored.columns) for name, examples in prepared.splits.items()})


def with_columns(examples: Examples, more: Mapping[str, Any]) -> Examples:
    return replace(examples, columns={**examples.columns, **more})


def digest(examples: Examples) -> str:
    """SHA-256 of the rows of a view: their numbers and all their columns."""
    arrays = {"ids": np.asarray(examples.ids)}
    for name, column in examples.columns.items():
        parts = (column.flat, column.offsets) if isinstance(column, Ragged) else (np.asarray(column),)
        arrays |= {f"{name}.{number}": part for number, part in enumerate(parts)}
    return arrays_digest(arrays)


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(array.view(np.uint8).reshape(-1).data)
    return found.hexdigest()
