"""Scaled dot-product attention within segments, one function for all families and backends.

Segments (not a boolean mask) say who sees whom: the same [B, T] integers serve padding and packing, and no [T, S] mask is
ever an argument. Padding (segment 0) is never seen but sees every real key, as checkpoints were trained: their masks hide keys alone,
and a text padded on the left is read from its first, padded, position. A query without any real key stays finite.

Letters: B batch, T/S query/key tokens, N heads, K kv heads, G = N/K, H head dim; X = B K and R = G T in the CPU rule.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtune.layers.cpu_math import compiled, exp2, narrow, on_cpu, stored, widen
from jaxtune.layers.dropout import Dropout, Mask

Implementation = Literal["auto", "xla", "cpu"]
SITE = "attention"
MASKED = -1e30  # finite: a row without any key gives a mean of values, not a NaN


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    noise: Dropout | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(q k^T scale) v -> [B, T, N, H] in q.dtype; K divides N (grouped queries).

    Tokens see their own segment only (0 is padding, which sees all others), and only earlier or equal positions when
    `causal`. `key_segment_ids` is for keys that are not the queries' tokens (default: `segment_ids`). `scale` defaults to
    H^-0.5. `noise` drops probabilities at its attention rate.
    """
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    if key_segment_ids is None:
        key_segment_ids = segment_ids
    segments = None if segment_ids is None or key_segment_ids is None else (segment_ids, key_segment_ids)
    if implementation == "cpu" or (implementation == "auto" and on_cpu()):
        mask = None if noise is None else noise.mask(SITE, "attention")
        return _fast(_Static(causal, factor), q, k, v, segments, mask)
    visible = _visible(segments, causal, q.shape[1], k.shape[1])
    if noise is None:
        return jax.nn.dot_product_attention(q, k, v, mask=visible, scale=factor)
    return _plain(q, k, v, visible, factor, noise)


def _visible(segments: tuple[Array, Array] | None, causal: bool, queries: int, keys: int) -> Array | None:
    """Boolean [B or 1, 1, T, S]: which query sees which key; None when all see all."""
    visible = None
    if segments is not None:
        of_query, of_key = segments[0][:, None, :, None], segments[1][:, None, None, :]
        visible = (of_key != 0) & ((of_query == of_key) | (of_query == 0))
    if causal:
        earlier = (jnp.arange(queries)[:, None] >= jnp.arange(keys)[None, :])[None, None]
        visible = earlier if visible is None else visible & earlier
    return visible


def _plain(q: Array, k: Array, v: Array, visible: Array | None, scale: float, noise: Dropout) -> Array:
    """The formula as it stands, where dropout has a place."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * scale
    if visible is not None:
        scores = jnp.where(visible, scores, MASKED)
    probabilities = noise.on(jax.nn.softmax(scores, -1), SITE, "attention")
    return jnp.einsum("BNTS,BSNH->BTNH", probabilities.astype(q.dtype), v)


class _Static(NamedTuple):
    causal: bool
    scale: float


class _Saved(NamedTuple):
    q: Array
    k: Array
    v: Array
    out: Array
    weight: Array  # [X, R, S] exp(score - max): probabilities before their division by the row's sum
    inverse: Array  # [X, R, 1] one over the row's sum, float32
    mask: Mask | None


def _attend(static: _Static, q: Array, k: Array, v: Array, segments: tuple[Array, Array] | None, mask: Mask | None) -> tuple[Array, _Saved]:
    """The forward pass for CPU.

    Three-dimensional operands with the contracted axis as below, each stored: with a transpose folded into it a bfloat16
    product is computed in float32 (17 ms for 2). The division by the row's sum comes after the product with v, on H instead
    of S numbers per row. A layer's forward and backward at 16 x 12 x 256 x 256: 38 ms, autodiff of the formula 133 ms.
    """
    batch, queries, heads, _ = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    scores = jnp.einsum("XRH,XHS->XRS", _queries_first(q, kv_heads), _width_first(k))
    visible = _visible(segments, static.causal, queries, keys)
    if visible is not None:
        hidden = jnp.asarray(MASKED, scores.dtype)
        scores = jnp.where(visible, scores.reshape(batch, heads, queries, keys), hidden).reshape(scores.shape)
    scores = stored(scores)
    scores, highest = stored((scores, scores.max(-1, keepdims=True)))
    exponent = (widen(scores) - widen(highest)) * np.float32(static.scale * math.log2(math.e))
    weight = stored(narrow(exp2(exponent, q.dtype), q.dtype))
    inverse = stored(1.0 / weight.astype(jnp.float32).sum(-1, keepdims=True))
    mixed = jnp.einsum("XRS,XHS->XRH", _dropped(weight, mask), _width_first(v))
    out = narrow(widen(mixed) * _row_scale(inverse, mask), q.dtype)
    out = _tokens_first(out, q.shape)
    return out, _Saved(q, k, v, out, weight, inverse, mask)


def _attend_backward(static: _Static, saved: _Saved, gradient: Array) -> tuple[Array, Array, Array, None, None]:
    """The backward pass for CPU; the sum over keys of gradient times probability is taken as gradient times output."""
    q, k, v, out, weight, inverse, mask = saved
    kv_heads, dtype = k.shape[2], q.dtype
    row_scale = _row_scale(inverse, mask)
    rows = _queries_first(gradient, kv_heads)
    mean = (widen(rows) * widen(_queries_first(out, kv_heads))).sum(-1, keepdims=True) * inverse
    columns = _queries_last(gradient, kv_heads)
    rows, mean, columns = stored((narrow(widen(rows) * row_scale, dtype), mean, narrow(widen(columns) * row_scale.swapaxes(1, 2), dtype)))
    to_v = jnp.einsum("XHR,XRS->XHS", columns, stored(_dropped(weight, mask)))
    to_weight = widen(stored(jnp.einsum("XRH,XHS->XRS", rows, _width_first(v))))
    if mask is not None:
        to_weight = jnp.where(mask.keep(weight.shape), to_weight, 0.0)
    to_scores = stored(narrow(widen(weight) * (to_weight - mean) * np.float32(static.scale), dtype))
    to_q = jnp.einsum("XRS,XHS->XRH", to_scores, _width_first(k))
    to_k = jnp.einsum("XHR,XRS->XHS", _queries_last(q, kv_heads), to_scores)
    return _tokens_first(to_q, q.shape), _keys_first(to_k, k.shape), _keys_first(to_v, v.shape), None, None


_forward = compiled(_attend, static=(0,))
_fast = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(0,))
_fast.defvjp(_forward, compiled(_attend_backward, static=(0,)))


def _dropped(weight: Array, mask: Mask | None) -> Array:
    return weight if mask is None else jnp.where(mask.keep(weight.shape), weight, jnp.zeros((), weight.dtype))


def _row_scale(inverse: Array, mask: Mask | None) -> Array:
    return inverse if mask is None else inverse * mask.scale


def _queries_first(x: Array, kv_heads: int) -> Array:
    """[B, T, N, H] -> [X, R, H]."""
    batch, queries, heads, width = x.shape
    x = x.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    return x.transpose(0, 2, 3, 1, 4).reshape(batch * kv_heads, -1, width)


def _queries_last(x: Array, kv_heads: int) -> Array:
    """[B, T, N, H] -> [X, H, R]."""
    batch, queries, heads, width = x.shape
    x = x.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    return x.transpose(0, 2, 4, 3, 1).reshape(batch * kv_heads, width, -1)


def _width_first(x: Array) -> Array:
    """[B, S, K, H] -> [X, H, S]."""
    batch, keys, kv_heads, width = x.shape
    return x.transpose(0, 2, 3, 1).reshape(batch * kv_heads, width, keys)


def _tokens_first(x: Array, shape: tuple[int, ...]) -> Array:
    """[X, R, H] -> [B, T, N, H]."""
    batch, queries, heads, width = shape
    return x.reshape(batch, heads, queries, width).transpose(0, 2, 1, 3)


def _keys_first(x: Array, shape: tuple[int, ...]) -> Array:
    """[X, H, S] -> [B, S, K, H]."""
    batch, keys, kv_heads, width = shape
    return x.reshape(batch, kv_heads, width, keys).transpose(0, 3, 1, 2)
