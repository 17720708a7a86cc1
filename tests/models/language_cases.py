"""The recorded language models as loaded models, and what the tests of this folder ask of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases

from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Flat
from jaxtune.parallel.placement import Placement

NAMES = cases.LANGUAGE
# One of each family, for what does not depend on the details.
FAMILIES = tuple({cases.INDEX[name]["model_type"]: name for name in reversed(NAMES)}.values())


@functools.cache
def loaded(name: str) -> cases.Loaded:
    return load(name)


def load(name: str, options: StackOptions | None = None, placement: Placement | None = None, dtype: Any = jnp.float32) -> cases.Loaded:
    return cases.load_folder(cases.REFERENCES / name, "language", options=options, placement=placement, dtype=dtype)


def batch_of(name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The texts, or the prompts with `prompt.`; positions are counted by us."""
    values = cases.reference(name)
    return {"tokens": values[f"{prefix}input_ids"], "segment_ids": values[f"{prefix}attention_mask"]}


def logits_of(it: cases.Loaded, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """[B, T, V], on the mesh of the loaded model."""

    @jax.jit
    def run(values: Flat, batch: dict[str, jax.Array]) -> jax.Array:
        model: Any = it.blueprint.build(values)
        return model.head.logits(model, model(batch).tokens)

    with it.placement.active():
        return np.asarray(run(it.values, it.placement.put_batch(batch)))


def loss_of(model: Any, batch: Mapping[str, jax.Array], token_weight: np.ndarray) -> jax.Array:
    """The weighted mean cross entropy of each next token."""
    logits = model.head.logits(model, model(batch).tokens)[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(batch["tokens"])[:, 1:, None], 2)[..., 0]
    return -jnp.sum(chosen * token_weight[:, 1:]) / token_weight[:, 1:].sum()


def loss_and_gradients(it: cases.Loaded, name: str) -> tuple[np.ndarray, Flat]:
    weight = cases.reference(name)["token_weight"]

    @jax.jit
    def run(values: Flat, batch: dict[str, jax.Array]) -> tuple[jax.Array, Flat]:
        return jax.value_and_grad(lambda values: loss_of(it.blueprint.build(values), batch, weight))(values)

    with it.placement.active():
        return jax.device_get(run(it.values, it.placement.put_batch(batch_of(name))))


@functools.cache
def run(name: str) -> tuple[np.ndarray, Flat]:
    """Loss and gradients by stored path of the whole, default stack on one device."""
    return loss_and_gradients(loaded(name), name)
