"""What a backbone makes of every example, before any head: one vector a row, for probes, comparisons of base models and searches.

Token models give the mean over the real tokens: the first token's vector means little before fine-tuning, in models that were trained with
mean pooling (sentence encoders) and without (Reimers and Gurevych 2019). Of a long text the beginning is read, because what it is about
stands there and the rest costs most of the time; of pairs all of it. Image models give what they pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.data.batch import FIELDS
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.parallel.placement import Placement
from jaxtune.tasks.base import Task

MOST_TOKENS = 128


@dataclass(frozen=True)
class FeatureTable:
    """Vectors f32[n, D] by example id i64[n], in the order of the ids."""

    ids: np.ndarray
    values: np.ndarray


def pooled_features(
    blueprint: Blueprint, task: Task, placement: Placement, params: Flat, variables: Flat, batches: Iterable[Any]
) -> FeatureTable:
    """One pass over `batches` (objects with `.arrays` on the devices); compiled once per batch shape."""

    def step(params: Flat, variables: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        prepared = task.prepare(beginnings(batch) if len(task.content) == 1 else batch)
        features = blueprint.build(params, variables)(prepared)  # type: ignore[operator]
        if features.tokens is None:
            return features.pooled.astype(jnp.float32)
        real = (prepared["segment_ids"] > 0).astype(jnp.float32)[..., None]
        return (features.tokens.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)

    program = jax.jit(step, out_shardings=placement.rows())
    ids, values = [], []
    for batch in batches:
        with placement.active():
            found = program(params, variables, dict(batch.arrays))
        host = jax.device_get({"id": batch.arrays["example_id"], "values": found})
        real = host["id"] >= 0
        ids.append(host["id"][real])
        values.append(host["values"][real])
    joined = np.concatenate(ids).astype(np.int64)
    order = np.argsort(joined, kind="stable")
    return FeatureTable(joined[order], np.concatenate(values)[order])


def beginnings(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The first MOST_TOKENS of every row."""
    return {name: x[:, :MOST_TOKENS] if name in FIELDS and FIELDS[name].ragged else x for name, x in batch.items()}
