"""What a teacher holds likeliest at every trained position, computed once before training and kept in the cache (`tasks/teacher.py`).

Only the positions with a loss are kept, J tokens each; they are put in their places when a row is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.core.folders import cache_folder
from jaxtune.data import cache
from jaxtune.data.examples import Column, Examples, Ragged
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.load import Base, check_licence, load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel import hosts
from jaxtune.prepare import Prepared
from jaxtune.session import Session
from jaxtune.tasks.reading import read
from jaxtune.tasks.teacher import LOG_PROBABILITY, TOKENS, Teacher


@dataclass(frozen=True, eq=False)
class AtTargets:
    """Values [targets of the row, J] as [tokens of the row, J], 0 where no target is: a column of `Examples`."""

    values: Ragged
    token_weight: Column

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> np.ndarray:
        there, values = self.token_weight[index] > 0, self.values[index]
        out = np.zeros((len(there), values.shape[1]), values.dtype)
        out[there] = values
        return out


def add_teacher(session: Session, teacher: Teacher, key: str) -> None:
    """Gives the training rows what the teacher says of them; `key` names it in the cache.

    Raises:
        ConfigError: teacher and model do not go together.
    """
    prepared = session.prepared
    base = open_teacher(prepared, teacher)
    assert base.checkpoint is not None
    stored, _ = cache.load_or_build(
        cache_folder("teacher"),
        cache.fingerprint({"key": key, "files": base.checkpoint.fingerprint}),
        lambda: listen(session, teacher, base),
    )
    train = prepared.splits["train"]
    weight = train.columns["token_weight"]
    more: dict[str, Any] = {name: AtTargets(column, weight) for name, column in stored.columns.items() if isinstance(column, Ragged)}
    session.subject = replace(prepared, splits={**prepared.splits, "train": replace(train, columns={**train.columns, **more})})


def open_teacher(prepared: Prepared, teacher: Teacher) -> Base:
    """The teacher's config and headers.

    Raises:
        ConfigError: it is not there, reads other tokens, or cannot read rows as long as these.
    """
    base, own, limit = open_base(teacher.base, "task.teacher.base"), prepared.base, prepared.limit
    check_licence(base, prepared.experiment.model.allowed_licences)
    tokenizer, vocabulary = prepared.processor.tokenizer, min(base.family.vocabulary or 0, own.family.vocabulary or 0)
    assert tokenizer is not None and base.folder is not None
    problems = []
    if not base.family.generates:
        problems.append(f"{base.reference} is a {base.family.model_type} model, which predicts no next token")
    elif Tokenizer.load(base.folder).fingerprint != tokenizer.fingerprint:
        problems.append(f"the tokenizer of {base.reference} is not that of {own.reference}; choose a teacher with the same one")
    if vocabulary and teacher.top_k > vocabulary:
        problems.append(f"top_k is {teacher.top_k}, the vocabulary has {vocabulary} tokens")
    if limit is not None and base.family.max_tokens is not None and limit > base.family.max_tokens:
        problems.append(f"{base.reference} reads at most {base.family.max_tokens} tokens, rows have up to {limit}; lower data.max_tokens")
    if problems:
        raise ConfigError([f"task.teacher: {problem}" for problem in problems])
    return base


def listen(session: Session, teacher: Teacher, base: Base) -> Examples:
    """Columns over all records, as `Ragged` of [targets, J]; empty for rows that do not train."""
    prepared = session.prepared
    hosts.say(
        f"the teacher {base.reference} reads the {len(prepared.splits['train']):,} training rows, once; what it says is kept in the cache"
    )
    blueprint, params = load_teacher(session, base)
    vocabulary = prepared.base.family.vocabulary or 1 << 30

    def likeliest(params: Flat, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return read(blueprint.build(params), batch).likeliest(teacher.top_k, teacher.temperature, vocabulary)

    program = jax.jit(likeliest, out_shardings=session.placement.rows())
    rows = len(prepared.scanned.records)
    tokens, log_probability = [np.zeros((0, teacher.top_k), np.int32)] * rows, [np.zeros((0, teacher.top_k), np.float32)] * rows
    plan = prepared.plan("train", divisor=session.placement.batch_ways, training=False)
    with session.feed("train", plan, stop=plan.steps()) as feed:
        for batch in feed:
            with session.placement.active():
                found = program(params, dict(batch.arrays))
            theirs, probabilities, weight, ids = jax.device_get((*found, batch.arrays["token_weight"], batch.arrays["example_id"]))
            for row in np.flatnonzero(ids >= 0):
                at = np.flatnonzero(weight[row] > 0) - 1  # said at the token before
                tokens[ids[row]], log_probability[ids[row]] = theirs[row, at], probabilities[row, at]
    return Examples({TOKENS: Ragged.of(tokens), LOG_PROBABILITY: Ragged.of(log_probability, np.float32)})


def load_teacher(session: Session, base: Base) -> tuple[Blueprint, Flat]:
    """The whole teacher in compute precision, for one pass."""
    model = session.prepared.experiment.model
    make = maker(base.family, "language", seed=0, options=model.stack(()), dtype=model.dtype)
    blueprint, table = Blueprint.of(make), Table(base.family.rows())
    plan = plan_load(base, blueprint, table, False)
    placed = shardings(blueprint, table, session.placement)
    return blueprint, load(base, blueprint, table, plan, make, placed, lambda key: jnp.dtype(model.dtype))
