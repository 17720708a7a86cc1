"""Attention for CPU: operand layouts, rounding and a backward pass of its own, because XLA's choices cost most of the step there.

Queries are taken in blocks, so that what causality hides is neither computed nor kept.

Letters: B batch, T/S query/key tokens, N heads, K kv heads, G = N/K, H head dim; X = B K and R = G T.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxtune.layers.cpu_math import compiled, exp2, narrow, stored, widen
from jaxtune.layers.dropout import Dropout, Mask
from jaxtune.layers.visibility import Visibility

SITE = "attention"
MASKED = -1e30  # finite: a row without any key gives a mean of values, not a NaN
_BLOCK = 128  # queries at a time, where causality hides keys


def cpu_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    sight: Visibility,
    scale: float,
    soft_cap: float | None,
    noise: Dropout | None,
) -> Float[Array, "B T N H"]:
    """As `attention.attention`; it can do all of it."""
    return _attention(_Static(scale, soft_cap), q, k, v, sight, None if noise is None else noise.mask(SITE, "attention"))


class _Static(NamedTuple):
    scale: float
    soft_cap: float | None


class _Block(NamedTuple):
    """What the backward pass needs of one block of queries."""

    weight: Array  # [X, R, S] exp(score - max): probabilities before their division by the row's sum
    inverse: Array  # [X, R, 1] one over the row's sum, float32
    slope: Array | None  # [X, R, S] of the soft cap, where there is one


class _Saved(NamedTuple):
    q: Array
    k: Array
    v: Array
    out: Array
    blocks: tuple[_Block, ...]
    sight: Visibility
    mask: Mask | None


def _attend(static: _Static, q: Array, k: Array, v: Array, sight: Visibility, mask: Mask | None) -> tuple[Array, _Saved]:
    """The forward pass.

    Three-dimensional operands with the contracted axis as below, each stored: with a transpose folded into it a bfloat16
    product is computed in float32 (17 ms for 2). The division by the row's sum comes after the product with v, on H instead
    of S numbers per row. A layer's forward and backward at 16 x 12 x 256 x 256: 38 ms, autodiff of the formula 133 ms.
    """
    kv_heads, outs, blocks = k.shape[2], [], []
    for queries, keys in _blocks(sight, q.shape[1], k.shape[1]):
        part = _rows(q, queries)
        scores = stored(jnp.einsum("XRH,XHS->XRS", _queries_first(part, kv_heads), _width_first(_rows(k, keys))))
        factor, slope = static.scale, None
        if static.soft_cap is not None:
            share = jnp.tanh(widen(scores) * np.float32(static.scale / static.soft_cap))
            scores, slope, factor = narrow(share, q.dtype), stored(narrow(1.0 - share * share, q.dtype)), static.soft_cap
        visible = sight.mask(queries, keys)
        if visible is not None:
            hidden = jnp.asarray(MASKED, scores.dtype)
            by_head = scores.reshape(q.shape[0], q.shape[2], len(queries), len(keys))
            scores = jnp.where(visible, by_head, hidden).reshape(scores.shape)
        scores = stored(scores)
        scores, highest = stored((scores, scores.max(-1, keepdims=True)))
        exponent = (widen(scores) - widen(highest)) * np.float32(factor * math.log2(math.e))
        weight = stored(narrow(exp2(exponent, q.dtype), q.dtype))
        inverse = stored(1.0 / weight.astype(jnp.float32).sum(-1, keepdims=True))
        kept = _kept(mask, q, k, queries, keys)
        mixed = jnp.einsum("XRS,XHS->XRH", _dropped(weight, kept), _width_first(_rows(v, keys)))
        out = narrow(widen(mixed) * _row_scale(inverse, mask), q.dtype)
        outs.append(_tokens_first(out, part.shape))
        blocks.append(_Block(weight, inverse, slope))
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, 1)
    return out, _Saved(q, k, v, out, tuple(blocks), sight, mask)


def _attend_backward(static: _Static, saved: _Saved, gradient: Array) -> tuple[Array, Array, Array, None, None]:
    """The backward pass; the sum over keys of gradient times probability is taken as gradient times output."""
    q, k, v, out, blocks, sight, mask = saved
    kv_heads, dtype = k.shape[2], q.dtype
    to_q, to_k, to_v = [], [], []
    for (queries, keys), (weight, inverse, slope) in zip(_blocks(sight, q.shape[1], k.shape[1]), blocks, strict=True):
        part, row_scale, kept = _rows(gradient, queries), _row_scale(inverse, mask), _kept(mask, q, k, queries, keys)
        rows = _queries_first(part, kv_heads)
        mean = (widen(rows) * widen(_queries_first(_rows(out, queries), kv_heads))).sum(-1, keepdims=True) * inverse
        columns = _queries_last(part, kv_heads)
        rows, mean, columns = stored(
            (narrow(widen(rows) * row_scale, dtype), mean, narrow(widen(columns) * row_scale.swapaxes(1, 2), dtype))
        )
        to_v.append((keys, jnp.einsum("XHR,XRS->XHS", columns, stored(_dropped(weight, kept)))))
        to_weight = widen(stored(jnp.einsum("XRH,XHS->XRS", rows, _width_first(_rows(v, keys)))))
        if kept is not None:
            to_weight = jnp.where(kept, to_weight, 0.0)
        to_scores = widen(weight) * (to_weight - mean) * np.float32(static.scale)
        if slope is not None:
            to_scores = to_scores * widen(slope)
        to_scores = stored(narrow(to_scores, dtype))
        to_q.append(_tokens_first(jnp.einsum("XRS,XHS->XRH", to_scores, _width_first(_rows(k, keys))), part.shape))
        to_k.append((keys, jnp.einsum("XHR,XRS->XHS", _queries_last(_rows(q, queries), kv_heads), to_scores)))
    return jnp.concatenate(to_q, 1), _keys_first(_summed(to_k, k), k.shape), _keys_first(_summed(to_v, v), v.shape), None, None


_forward = compiled(_attend, static=(0,))
_attention = jax.custom_vjp(lambda *arguments: _forward(*arguments)[0], nondiff_argnums=(0,))
_attention.defvjp(_forward, compiled(_attend_backward, static=(0,)))


def _blocks(sight: Visibility, queries: int, keys: int) -> list[tuple[range, range]]:
    """Queries with the keys they may see: all at once where nothing is hidden by its slot."""
    if len(sight.reach(range(queries), keys)) == keys and len(sight.reach(range(min(_BLOCK, queries)), keys)) == keys:
        return [(range(queries), range(keys))]
    parts = [range(start, min(start + _BLOCK, queries)) for start in range(0, queries, _BLOCK)]
    return [(part, sight.reach(part, keys)) for part in parts]


def _rows(x: Array, part: range) -> Array:
    """The tokens `part` of [B, T, ...]."""
    return x if len(part) == x.shape[1] else lax.slice_in_dim(x, part.start, part.stop, axis=1)


def _kept(mask: Mask | None, q: Array, k: Array, queries: range, keys: range) -> Array | None:
    """The block of the dropout mask over [B, N, T, S], as [X, R, S]: the same bits however the queries are cut."""
    if mask is None:
        return None
    (batch, length, heads, _), (_, slots, kv_heads, _) = q.shape, k.shape
    whole = mask.keep((batch, heads, length, slots))
    block = whole[:, :, queries.start : queries.stop, keys.start : keys.stop]
    return block.reshape(batch * kv_heads, -1, len(keys))


def _dropped(weight: Array, kept: Array | None) -> Array:
    return weight if kept is None else jnp.where(kept, weight, jnp.zeros((), weight.dtype))


def _row_scale(inverse: Array, mask: Mask | None) -> Array:
    return inverse if mask is None else inverse * mask.scale


def _summed(parts: list[tuple[range, Array]], like: Array) -> Array:
    """The gradients [X, H, S] of overlapping ranges of keys, added in float32, as one."""
    keys = like.shape[1]
    if len(parts) == 1 and len(parts[0][0]) == keys:
        return parts[0][1]
    zero = jnp.zeros((), jnp.float32)
    wide = [lax.pad(widen(part), zero, ((0, 0, 0), (0, 0, 0), (own.start, keys - own.stop, 0))) for own, part in parts]
    return narrow(sum(wide[1:], wide[0]), like.dtype)


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
