"""A model of one embedding and one product with the interface of a family's module, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from jaxtune.evaluation.evaluate import Evaluated, Evaluator
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import Features
from jaxtune.models.heads import LinearHead
from jaxtune.parallel.placement import Placement
from jaxtune.tasks.base import Task


class Reader(nnx.Module):
    """The mean of the token embeddings."""

    def __init__(self, outputs: int):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(120, 8, rngs=rngs)
        self.head = LinearHead(8, outputs, deviation=1.0, rngs=rngs)

    def __call__(self, batch: Mapping[str, jax.Array], noise: Any = None, training: bool = False) -> Features:
        real = (batch["segment_ids"] > 0).astype(jnp.float32)[..., None]
        total = (self.embed(batch["tokens"]) * real).sum(1)
        return Features(total / jnp.maximum(real.sum(1), 1.0))


def evaluator(task: Task, outputs: int = tiny.CLASSES, placement: Placement | None = None) -> tuple[Evaluator, dict[str, jax.Array]]:
    placement = placement or tiny.one_device()
    blueprint, values = Blueprint.split(Reader(outputs))

    def sharding(key: str, shape: tuple[int, ...]) -> Any:
        return placement.sharding(("vocab", "embed")[: len(shape)] if "embed" in key else ("embed", "mlp")[: len(shape)], shape)

    return Evaluator(blueprint, task, outputs, placement), {
        key: jax.device_put(np.asarray(value), sharding(key, value.shape)) for key, value in values.items()
    }


def evaluate(task: Task, batches: list[tiny.Batch], *, outputs: int = tiny.CLASSES, placement: Placement | None = None) -> Evaluated:
    run, params = evaluator(task, outputs, placement)
    return run(params, {}, [tiny.put(batch, run.placement) for batch in batches], keep=True)


def ragged(count: int, rows: int, width: int = 12) -> list[tiny.Batch]:
    """`count` examples in batches of `rows`, the last of which is filled up."""
    examples = tiny.texts(count + 1, width, seed=3)
    examples = {name: value[:count] for name, value in examples.items()}
    examples |= {"loss_weight": np.ones(count, np.float32), "example_id": np.arange(count, dtype=np.int32)}
    return [filled({name: value[start : start + rows] for name, value in examples.items()}, rows) for start in range(0, count, rows)]


def filled(part: tiny.Batch, rows: int) -> tiny.Batch:
    """With rows of zeros up to `rows`, whose example_id is -1."""

    def fill(name: str, value: np.ndarray) -> np.ndarray:
        empty = np.full((rows - len(value), *value.shape[1:]), -1 if name == "example_id" else 0, value.dtype)
        return np.concatenate([value, empty])

    return {name: fill(name, value) for name, value in part.items()}
