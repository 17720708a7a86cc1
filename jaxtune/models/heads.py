"""Classification heads, in the two shapes that transformers' classes have: one product, or dense -> activation -> product."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.linear import Linear
from jaxtune.models.family import Features


class LinearHead(nnx.Module):
    """dropout -> out. Logits [B, C] are computed in float32."""

    def __init__(self, width: int, outputs: int, *, deviation: float, rngs: nnx.Rngs):
        self.out = Linear(width, outputs, deviation=deviation, rngs=rngs)

    def __call__(self, features: Features, noise: Dropout | None = None) -> Float[Array, "B C"]:
        return self.out(dropout(features.pooled, noise, "head.in", "head").astype(jnp.float32))


class DenseHead(nnx.Module):
    """[dropout ->] dense -> activation -> dropout -> out. Logits [B, C] are computed in float32."""

    def __init__(self, width: int, outputs: int, *, activation: str, drop_input: bool, deviation: float, rngs: nnx.Rngs):
        self.dense = Linear(width, width, deviation=deviation, rngs=rngs)
        self.out = Linear(width, outputs, deviation=deviation, rngs=rngs)
        self.activation = activation
        self.drop_input = drop_input

    def __call__(self, features: Features, noise: Dropout | None = None) -> Float[Array, "B C"]:
        x: jax.Array = features.pooled.astype(jnp.float32)
        if self.drop_input:
            x = dropout(x, noise, "head.in", "head")
        x = ACTIVATIONS[self.activation](self.dense(x))
        return self.out(dropout(x, noise, "head.mid", "head"))
