"""One pass of a candidate over training rows: the features that the head's last product would read, kept on disk by fingerprint.

They are taken through the task, the batches and the evaluator of a training run, so they are what a head trained alone would see. What
starts fresh in a run (a pooler or a dense layer that the checkpoint lacks) says nothing about the checkpoint and is left out. Of texts the
mean over the tokens is read as well: sentence encoders were trained with it and leave the first token without meaning until it is
fine-tuned (MiniLM on 450 BBC articles: a probe is right for 0.88 by the head's reading and 0.95 by the mean).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.data import cache as disk
from jaxtune.data.examples import Examples
from jaxtune.data.feed import Feed
from jaxtune.data.pipeline import batches
from jaxtune.data.plan import Plan, choose_widths
from jaxtune.evaluation.evaluate import Evaluator
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.dropout import Dropout
from jaxtune.models.blueprint import Flat
from jaxtune.models.family import Features
from jaxtune.models.heads import DenseHead
from jaxtune.models.vit import TeacherHead
from jaxtune.session import Session
from jaxtune.tasks.base import Task

FORMAT = 2  # raise it when the meaning of the features changes: older entries are then not found
WIDTHS = 3  # each costs a compilation, and there is only one pass
BATCH = 32
HEAD, MEAN = "head", "mean of tokens"


@dataclass(frozen=True)
class Embeddings:
    """
    Attributes:
        readings: "head" and, of texts, "mean of tokens": f32[n, D] each, in the order of the rows asked for.
        seconds: of the pass, compilation included; 0 when they came from the cache.
    """

    readings: Mapping[str, np.ndarray]
    from_cache: bool
    seconds: float


@dataclass(frozen=True)
class HeadInputs:
    """Stands in a task's place and gives what the head's last product reads, before dropout, as logits; the mean over the tokens as probabilities.

    Attributes:
        dense: whether a head's dense layer comes from the checkpoint.
        pooler: whether what makes `pooled` does; else the first token's features are taken.
    """

    task: Task
    dense: bool
    pooler: bool

    @classmethod
    def of(cls, session: Session) -> HeadInputs:
        """By what the checkpoint holds; a new model's parameters are all alike, so nothing is left out."""
        fresh = session.loading.fresh if session.subject.base.checkpoint is not None else frozenset[str]()
        return cls(session.prepared.task, not _any_begins(fresh, "head.dense"), not _any_begins(fresh, "pooler"))

    def predict(
        self, model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False
    ) -> dict[str, jax.Array]:
        """`logits`: the head's reading, f32[B, D]; `probabilities`: the mean over the tokens, f32[B, D], or zeros [B, 1] without tokens."""
        built: Any = model
        prepared = self.task.prepare(batch)
        features = built(prepared, noise, training)
        x = self.read(built.head, features).astype(jnp.float32)
        if features.tokens is None or "segment_ids" not in prepared:
            return {"logits": x, "probabilities": jnp.zeros((len(x), 1), jnp.float32)}
        real = (prepared["segment_ids"] > 0).astype(jnp.float32)[..., None]
        mean = (features.tokens.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)
        return {"logits": x, "probabilities": mean}

    def read(self, head: Any, features: Features) -> jax.Array:
        pooled = features.pooled
        if not self.pooler and features.tokens is not None:
            pooled = features.tokens[:, 0]
        if isinstance(head, DenseHead) and self.dense:
            return ACTIVATIONS[head.activation](head.dense(pooled.astype(jnp.float32)))
        if isinstance(head, TeacherHead):  # it has two last products, on two tokens
            assert features.tokens is not None
            return jnp.concatenate([pooled, features.tokens[:, 1]], -1)
        return pooled


def _any_begins(names: frozenset[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def embed(
    session: Session,
    inputs: HeadInputs,
    records: np.ndarray,
    params: Flat,
    variables: Flat,
    *,
    fresh: bool,
    cache: Path | None,
) -> Embeddings:
    """Features of training records, from the cache where they are there already.

    Args:
        records: record numbers, all of the training split.
        fresh: the weights are random although the base is a checkpoint.
        cache: folder of stored embeddings; None stores nothing.

    Raises:
        DiskError: the cache cannot be written.
    """
    examples = session.prepared.splits["train"]
    place = np.searchsorted(examples.ids, records)
    assert (examples.ids[place] == records).all(), "records outside of the training split"
    start = time.perf_counter()

    def build() -> Examples:
        # An entry of the data cache holds columns of examples, of which a target may have several numbers per row, and facts beside them.
        head, mean = infer(session, inputs, examples.subset(place), params, variables)
        return Examples({"target": head}, facts={"mean": mean})

    stored, hit = disk.load_or_build(cache, fingerprint(session, inputs, records, fresh), build)
    readings = {HEAD: np.asarray(stored.columns["target"])}
    if stored.facts["mean"].shape[1] > 1:
        readings[MEAN] = np.asarray(stored.facts["mean"])
    return Embeddings(readings, hit, 0.0 if hit else time.perf_counter() - start)


def infer(session: Session, inputs: HeadInputs, examples: Examples, params: Flat, variables: Flat) -> tuple[np.ndarray, np.ndarray]:
    """One pass: the head's reading and the mean over the tokens, f32[n, D] each in the order of `examples`."""
    data, ways, limit = session.prepared.experiment.data, session.placement.batch_ways, session.prepared.limit
    size = data.evaluation_batch_size or data.batch_size or BATCH
    widths = None
    if examples.lengths is not None and limit is not None:
        longest = min(limit, -(-int(np.max(examples.lengths)) // 8) * 8)
        widths = choose_widths(examples.lengths, longest, at_most=WIDTHS, batch_size=size)
    plan = Plan(
        rows=len(examples), lengths=examples.lengths, widths=widths, batch_size=-(-size // ways) * ways, shuffle=False, divisor=ways
    )  # fmt: skip
    task: Any = inputs
    evaluator = Evaluator(session.blueprint, task, 0, session.placement)
    with Feed(batches(examples, plan, stop=plan.steps()), session.place) as feed:
        found = evaluator.infer(params, variables, feed)
    assert len(found.ids) == len(examples)
    order = np.searchsorted(found.ids, examples.ids)
    return found.logits[order], found.probabilities[order]


def fingerprint(session: Session, inputs: HeadInputs, records: np.ndarray, fresh: bool) -> str:
    """The key of a candidate's features: everything that decides them."""
    subject, experiment = session.prepared, session.prepared.experiment
    checkpoint, processor = subject.base.checkpoint, subject.processor
    return disk.fingerprint(
        {
            "embeddings": FORMAT,
            "base": subject.base.family.raw if checkpoint is None else checkpoint.fingerprint,
            "family": f"{type(subject.base.family).__module__}:{type(subject.base.family).__qualname__}",
            "seed": experiment.seed if fresh or checkpoint is None else None,
            "inputs": [inputs.dense, inputs.pooler],
            "dtype": [experiment.model.dtype, sorted(frozenset[str]().union(*session.trained))],  # what trains is kept in float32
            "records": [subject.fingerprint, records.tolist()],
            "task": [f"{type(subject.task).__module__}:{type(subject.task).__qualname__}", subject.task.content],
            "tokenizer": None
            if processor.tokenizer is None
            else [processor.tokenizer.fingerprint, subject.limit, experiment.data.over_length],
            "image": None if processor.image is None else [repr(processor.image.shape), dict(processor.image.config)],
        }
    )
