"""Dense layers and embeddings: parameters in float32 or compute precision, products in the input's dtype."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.layers.matmul import matmul


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [I, O]."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, deviation: float = 0.02, rngs: nnx.Rngs):
        self.kernel = nnx.Param(deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        return matmul(x, self.kernel[...], bias=None if self.bias is None else self.bias[...])


class Embedding(nnx.Module):
    """Rows of a table [V, D] by index."""

    def __init__(self, count: int, width: int, *, deviation: float = 0.02, rngs: nnx.Rngs):
        self.embedding = nnx.Param(deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (count, width), jnp.float32))

    def __call__(self, index: Int[Array, "..."]) -> Float[Array, "... D"]:
        return jnp.take(self.embedding[...], index, axis=0, mode="clip")
