"""Normalisation, always computed in float32 and returned in the input's dtype.

bfloat16 statistics lose the mean of a wide row, so the conversion stands here once instead of at every call.

Letters: B batch, D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, "D"],
    bias: Float[Array, "D"] | None,
    epsilon: float,
) -> Float[Array, "... D"]:
    """Zero mean and unit variance over the last axis, then scale and bias; float32 inside, x.dtype outside."""
    values = x.astype(jnp.float32)
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    result = centred * inverse * _row(scale, x.ndim)
    if bias is not None:
        result = result + _row(bias, x.ndim)
    return result.astype(x.dtype)


def _row(vector: Array, ndim: int) -> Array:
    """A [D] vector as float32 [1, ..., 1, D], because rank promotion raises."""
    return vector.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector.shape)


class LayerNorm(nnx.Module):
    """`layer_norm` with its parameters; `bias` is None when the family has none."""

    def __init__(self, width: int, *, epsilon: float, bias: bool = True, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, self.epsilon)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's meaning of every number.

    The batch's biased variance normalises, its unbiased variance enters the running one, and `momentum` is the share of
    the new batch (0.1 in torchvision), not of the old average.
    """

    def __init__(self, width: int, *, epsilon: float, momentum: float, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32))
        self.epsilon = epsilon
        self.momentum = momentum

    def __call__(
        self, x: Float[Array, "B ... D"], training: bool, weight: Float[Array, "B"] | None = None
    ) -> Float[Array, "B ... D"]:
        """Examples of weight 0 (padding of a ragged batch) leave the statistics alone."""
        values = x.astype(jnp.float32)
        if training:
            mean, var = self._batch_statistics(values, weight)
        else:
            mean, var = self.mean[...], self.var[...]
        inverse = jax.lax.rsqrt(var + self.epsilon) * self.scale[...]
        shift = self.bias[...] - mean * inverse
        return (values * _row(inverse, x.ndim) + _row(shift, x.ndim)).astype(x.dtype)

    def _batch_statistics(self, values: Array, weight: Array | None) -> tuple[Array, Array]:
        """The batch's mean and biased variance [D]; moves the running ones."""
        axes = tuple(range(values.ndim - 1))
        each = jnp.ones(values.shape[:1], jnp.float32) if weight is None else weight.astype(jnp.float32)
        each = each.reshape((-1,) + (1,) * (values.ndim - 1))
        count = each.sum() * (values[0].size / values.shape[-1])
        total = jnp.maximum(count, 1.0)
        mean = (values * each).sum(axes) / total
        var = (jnp.square(values - _row(mean, values.ndim)) * each).sum(axes) / total
        unbiased = var * total / jnp.maximum(count - 1.0, 1.0)
        share = jnp.where(count > 0, self.momentum, 0.0)
        self.mean[...] += share * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += share * (jax.lax.stop_gradient(unbiased) - self.var[...])
        return mean, var
