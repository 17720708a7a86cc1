"""The two-layer part of a transformer block: down(activation(up(x))), or gated: down(activation(gate(x)) * up(x)).

Letters: B batch, T tokens, D embed.
"""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from jaxtune.layers.activations import ACTIVATIONS, gated
from jaxtune.layers.linear import Linear
from jaxtune.parallel.placement import constrain


class FeedForward(nnx.Module):
    """`gated` multiplies with a second projection that has no activation (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, *, activation: str, gated: bool, bias: bool, deviation: float, rngs: nnx.Rngs):
        self.gate = Linear(width, inner, bias=bias, deviation=deviation, rngs=rngs) if gated else None
        self.up = Linear(width, inner, bias=bias, deviation=deviation, rngs=rngs)
        self.down = Linear(inner, width, bias=bias, deviation=deviation, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        up = self.up(x)
        inner = ACTIVATIONS[self.activation](up) if self.gate is None else gated(self.activation, self.gate(x), up)
        return self.down(constrain(inner, "batch", "token", "mlp"))
