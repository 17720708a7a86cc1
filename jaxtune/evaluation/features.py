"""What a backbone makes of every example, before any head: one vector a row, for probes, comparisons of base models and searches.

Token models give the mean over the real tokens: the first token's vector means little before fine-tuning, in models that were trained with
mean pooling (sentence encoders) and without (Reimers and Gurevych 2019). Image models give what they pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.core.errors import JaxtuneError
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.parallel.placement import Placement
from jaxtune.tasks.base import Task


@dataclass(frozen=True)
class FeatureTable:
    """Vectors f32[n, D] by example id i64[n], in the order of the ids."""

    ids: np.ndarray
    values: np.ndarray


class TooLong(JaxtuneError):
    """A pass was given up, because it would have taken longer than it may."""


def pooled_features(
    blueprint: Blueprint, task: Task, placement: Placement, params: Flat, variables: Flat, batches: Iterable[Any], *,
    most_seconds: float = math.inf, rows: int = 0,
) -> FeatureTable:  # fmt: skip
    """One pass over `batches` (objects with `.arrays` on the devices); compiled once per batch shape.

    Args:
        most_seconds: how long the pass over `rows` rows may take, judged by the rows done so far.

    Raises:
        TooLong: it would take longer.
    """

    def step(params: Flat, variables: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        prepared = task.prepare(batch)
        features = blueprint.build(params, variables)(prepared)  # type: ignore[operator]
        if features.tokens is None:
            return features.pooled.astype(jnp.float32)
        real = (prepared["segment_ids"] > 0).astype(jnp.float32)[..., None]
        return (features.tokens.astype(jnp.float32) * real).sum(1) / jnp.maximum(real.sum(1), 1.0)

    program = jax.jit(step, out_shardings=placement.rows())
    ids, values = [], []
    start, done = time.perf_counter(), 0
    for batch in batches:
        spent = time.perf_counter() - start
        if done and spent > most_seconds / 20 and (needed := spent / done * rows) > most_seconds:
            raise TooLong(
                f"the pass over {rows:,} rows would take about {needed / 60:,.0f} minutes; at most {most_seconds / 60:,.0f} are spent"
            )
        with placement.active():
            found = program(params, variables, dict(batch.arrays))
        host = jax.device_get({"id": batch.arrays["example_id"], "values": found})
        real = host["id"] >= 0
        ids.append(host["id"][real])
        values.append(host["values"][real])
        done += int(real.sum())
    joined = np.concatenate(ids).astype(np.int64)
    order = np.argsort(joined, kind="stable")
    return FeatureTable(joined[order], np.concatenate(values)[order])
