"""Heads as transformers' classes have them: classification (one product, or dense -> activation -> product), and the vocabulary."""

from __future__ import annotations

from typing import Any

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

    def __init__(self, width: int, outputs: int, *, bias: bool = True, deviation: float, rngs: nnx.Rngs):
        self.out = Linear(width, outputs, bias=bias, deviation=deviation, rngs=rngs)

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


class LanguageHead(nnx.Module):
    """Logits over the vocabulary: soft_cap(scale * hidden @ weights^T).

    A tied head has no parameter: its weights are the token embeddings. The chunked loss (`layers/lm_loss.py`) takes `weights`, `bias`,
    `soft_cap` and `scale`, and never makes the logits of a whole batch.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        *,
        tied: bool,
        soft_cap: float | None = None,
        scale: float = 1.0,
        deviation: float,
        rngs: nnx.Rngs,
    ):
        own = None if tied else deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (vocabulary, width), jnp.float32)
        self.embedding = None if own is None else nnx.Param(own)
        self.bias: nnx.Param | None = nnx.data(None)  # none of the families has one
        self.soft_cap = soft_cap
        self.scale = scale

    def weights(self, model: Any) -> Float[Array, "V D"]:
        """The matrix, of its own or the model's embeddings."""
        return model.embeddings.token.embedding[...] if self.embedding is None else self.embedding[...]

    def logits(self, model: Any, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """float32 logits of a few positions, as a generator needs them."""
        weights = self.weights(model).astype(hidden.dtype)
        logits = self.scale * jnp.einsum("...D,VD->...V", hidden, weights, preferred_element_type=jnp.float32)
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)
