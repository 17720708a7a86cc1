"""Scaled dot-product attention within segments, one function for all families and backends.

Segments (not a boolean mask) say who sees whom: the same [B, T] integers serve padding and packing, and no [T, S] mask is
ever an argument. Padding (segment 0) is never seen, but itself sees every real token: checkpoints were trained with a mask on keys
alone, and a text padded on the left is read from its first, padded, position. A row without any real key stays finite.

Letters: B batch, T/S query/key tokens, N heads, K kv heads, G = N/K, H head dim.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtune.layers.dropout import Dropout

Implementation = Literal["auto", "xla", "cpu"]
MASKED = -1e30  # finite: a row without any key gives a mean of values, not a NaN


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    noise: Dropout | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(q k^T scale) v -> [B, T, N, H] in q.dtype; K divides N (grouped queries).

    Tokens see their own segment only (0 is padding, which sees all real keys), and only earlier or equal positions when `causal`. `scale` defaults
    to H^-0.5. `noise` drops probabilities at its attention rate.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "auto":
        implementation = "cpu" if jax.default_backend() == "cpu" else "xla"
    if implementation == "xla" and noise is None:
        return _library(q, k, v, segment_ids, causal, scale)
    return _plain(q, k, v, segment_ids, causal, scale, noise)


def _library(
    q: Array, k: Array, v: Array, segment_ids: Array | None, causal: bool, scale: float
) -> Array:
    mask = None if segment_ids is None else visible(segment_ids)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale)


def visible(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T S"]:
    """Which key each query sees: a real one, of the query's own segment unless the query is padding."""
    queries, keys = segment_ids[:, :, None], segment_ids[:, None, :]
    return (keys != 0) & ((queries == keys) | (queries == 0))


def _plain(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array | None,
    causal: bool,
    scale: float,
    noise: Dropout | None,
) -> Array:
    """The same by its formula, where dropout has a place."""
    batch, queries, heads, width = q.shape
    keys, groups = k.shape[1], k.shape[2]
    grouped = q.reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k).astype(jnp.float32) * scale
    if segment_ids is not None:
        scores = jnp.where(visible(segment_ids)[:, None, None], scores, MASKED)
    if causal:
        earlier = jnp.arange(queries)[:, None] >= jnp.arange(keys)[None, :]
        scores = jnp.where(earlier[None, None, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, -1)
    if noise is not None:
        shape = (batch, heads, queries, keys)
        probabilities = noise.on(probabilities.reshape(shape), "attention", "attention").reshape(scores.shape)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", probabilities.astype(q.dtype), v)
    return out.reshape(q.shape)
