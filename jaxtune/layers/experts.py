"""A mixture of experts: a router sends each token to its best few of many gated feed-forward parts.

Tokens are sorted by expert, so that each expert is one piece of one ragged product and none drops a token.

Letters: B batch, T tokens, D embed, F expert width, E experts, P chosen pairs of token and expert.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.layers.activations import gated
from jaxtune.layers.linear import Linear


class Load(NamedTuple):
    """What real tokens asked of the experts, summed over tokens and layers."""

    chosen: Float[Array, " E"]  # how often each was chosen
    probability: Float[Array, " E"]  # the router's probabilities
    tokens: Float[Array, ""]

    @classmethod
    def none(cls, experts: int) -> Load:
        return cls(jnp.zeros((experts,)), jnp.zeros((experts,)), jnp.zeros(()))

    def imbalance(self) -> Float[Array, ""]:
        """The auxiliary loss of Switch Transformers (Fedus et al. 2021, arXiv 2101.03961), equations 4 to 6, as transformers sums it up.

        It is the number of chosen experts when all are used alike, and grows when few are.
        """
        tokens = jnp.maximum(self.tokens, 1.0)
        return len(self.chosen) * jnp.sum(self.chosen / tokens * (self.probability / tokens))


class ExpertKernels(nnx.Module):
    """The kernels of all experts: gate and up [E, D, F], down [E, F, D]."""

    def __init__(self, count: int, width: int, inner: int, *, deviation: float, rngs: nnx.Rngs):
        def kernel(*shape: int) -> nnx.Param:
            return nnx.Param(deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (count, *shape), jnp.float32))

        self.gate, self.up, self.down = kernel(width, inner), kernel(width, inner), kernel(inner, width)


class Experts(nnx.Module):
    """sum over the `chosen` best experts of weight * down(activation(gate(x)) * up(x)).

    Weights are the router's probabilities over all experts, or, with `normalise`, over the chosen ones.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        count: int,
        chosen: int,
        normalise: bool,
        activation: str,
        deviation: float,
        rngs: nnx.Rngs,
    ):
        self.router = Linear(width, count, bias=False, deviation=deviation, rngs=rngs)
        self.experts = ExpertKernels(count, width, inner, deviation=deviation, rngs=rngs)
        self.chosen, self.normalise, self.activation = chosen, normalise, activation

    def __call__(self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], load: Load) -> tuple[Float[Array, "B T D"], Load]:
        """The mixture, and the load with these tokens added; padding is computed like any token but counts nowhere."""
        tokens = x.reshape(-1, x.shape[-1])
        probabilities = jax.nn.softmax(self.router(tokens).astype(jnp.float32), -1)
        weights, experts = jax.lax.top_k(probabilities, self.chosen)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdims=True)
        real = (segment_ids.reshape(-1, 1) > 0).astype(jnp.float32)
        uses = jax.nn.one_hot(experts, probabilities.shape[-1]).sum(1)
        load = Load(load.chosen + (uses * real).sum(0), load.probability + (probabilities * real).sum(0), load.tokens + real.sum())
        return self._mixed(tokens, weights, experts).reshape(x.shape), load

    def _mixed(self, tokens: Float[Array, "X D"], weights: Float[Array, "X K"], experts: Int[Array, "X K"]) -> Float[Array, "X D"]:
        order = jnp.argsort(experts.reshape(-1), stable=True)
        sizes = jnp.bincount(experts.reshape(-1), length=self.experts.gate.shape[0]).astype(jnp.int32)
        source = order // self.chosen

        def product(x: Float[Array, "P I"], kernel: nnx.Param) -> Float[Array, "P O"]:
            return jax.lax.ragged_dot(x, kernel[...].astype(x.dtype), sizes)

        rows = tokens[source]
        inner = gated(self.activation, product(rows, self.experts.gate), product(rows, self.experts.up))
        outputs = product(inner, self.experts.down) * weights.reshape(-1)[order][:, None].astype(tokens.dtype)
        return jnp.zeros_like(tokens).at[source].add(outputs)
