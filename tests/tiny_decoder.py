"""A decoder of one attention layer that keeps to the cache contract of `models/decoder.py`, and the same numbers by NumPy without a cache."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import Features
from jaxtune.models.generate import Generator
from jaxtune.models.generation import Generation
from jaxtune.parallel.placement import Placement

VOCABULARY, WIDTH, HEADS, KV_HEADS, POSITIONS = 13, 8, 4, 2, 64
HEAD_WIDTH = WIDTH // HEADS


class TinyHead(nnx.Module):
    """A matrix, a bias and a soft cap, far enough from its ends that no two tokens tie."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.6 * jax.random.normal(rngs.params(), (VOCABULARY, WIDTH)))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY,)))

    def logits(self, model: Any, hidden: jax.Array) -> jax.Array:
        del model
        return 4.0 * jnp.tanh((0.7 * hidden @ self.embedding[...].T + self.bias[...][None]) / 4.0)


class TinyDecoder(nnx.Module):
    rereads = ()

    def __init__(self, rngs: nnx.Rngs):
        def param(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape))

        self.token, self.position = param(VOCABULARY, WIDTH), param(POSITIONS, WIDTH)
        self.q, self.k, self.v = param(WIDTH, WIDTH), param(WIDTH, KV_HEADS * HEAD_WIDTH), param(WIDTH, KV_HEADS * HEAD_WIDTH)
        self.head = TinyHead(rngs)

    def empty_cache(self, batch: int, slots: int, dtype: Any) -> Any:
        shape = (1, batch, slots, KV_HEADS, HEAD_WIDTH)
        return {"0-0": {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}}

    def decode(self, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array, cache: Any, first: jax.Array) -> tuple[Features, Any]:
        rows, count = tokens.shape
        x = self.token[...][tokens] + self.position[...][positions]
        new = {name: (x @ getattr(self, name)[...]).reshape(1, rows, count, KV_HEADS, HEAD_WIDTH) for name in ("k", "v")}
        cache = {"0-0": {name: jax.lax.dynamic_update_slice(old, new[name], (0, 0, first, 0, 0)) for name, old in cache["0-0"].items()}}
        k, v = (jnp.repeat(cache["0-0"][name][0], HEADS // KV_HEADS, 2) for name in ("k", "v"))
        q = (x @ self.q[...]).reshape(rows, count, HEADS, HEAD_WIDTH)
        slots = first + jnp.arange(count)
        visible = (slots[:, None] >= jnp.arange(k.shape[1])[None])[None, None] & (segment_ids > 0)[:, None, None, :]
        scores = jnp.where(visible, jnp.einsum("BTNH,BSNH->BNTS", q, k), -1e9)
        x = x + jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, -1), v).reshape(x.shape)
        return Features(pooled=x[:, -1], tokens=x), cache


@functools.cache
def decoder(seed: int = 0) -> tuple[Blueprint, dict[str, np.ndarray]]:
    blueprint, values = Blueprint.split(TinyDecoder(nnx.Rngs(seed)))
    return blueprint, {key: np.asarray(value) for key, value in values.items()}


def generator(
    settings: Generation, *, ends: tuple[int, ...] = (), placement: Placement | None = None, seed: int = 0, **more: Any
) -> tuple[Generator, dict[str, jax.Array]]:
    """A generator of the tiny decoder, and its parameters on the devices."""
    placement = placement or tiny.one_device()
    blueprint, values = decoder(seed)
    made = Generator(blueprint, settings, ends, placement, jnp.float32, max_tokens=POSITIONS, **more)
    axes = {"head.embedding": ("vocab", "embed"), "token": ("vocab", "embed"), "k": ("embed", "kv_heads"), "v": ("embed", "kv_heads")}
    return made, {key: jax.device_put(x, placement.sharding(axes.get(key, (None,) * x.ndim), x.shape)) for key, x in values.items()}


def next_log_probabilities(values: Mapping[str, np.ndarray], tokens: Sequence[int]) -> np.ndarray:
    """f64[V] after a row of tokens, from the beginning and in float64."""
    w = {key: x.astype(np.float64) for key, x in values.items()}
    x = w["token"][list(tokens)] + w["position"][: len(tokens)]
    q = (x[-1] @ w["q"]).reshape(HEADS, HEAD_WIDTH)
    k, v = ((x @ w[name]).reshape(-1, KV_HEADS, HEAD_WIDTH) for name in ("k", "v"))
    out = []
    for head in range(HEADS):
        scores = k[:, head * KV_HEADS // HEADS] @ q[head]
        share = np.exp(scores - scores.max())
        out.append(share / share.sum() @ v[:, head * KV_HEADS // HEADS])
    hidden = x[-1] + np.concatenate(out)
    logits = 4.0 * np.tanh((0.7 * w["head.embedding"] @ hidden + w["head.bias"]) / 4.0)
    return logits - np.log(np.exp(logits).sum())


def prompts(count: int, seed: int = 0, longest: int = 20) -> list[list[int]]:
    dice = np.random.default_rng(seed)
    return [dice.integers(0, VOCABULARY, int(dice.integers(1, longest + 1))).tolist() for _ in range(count)]
