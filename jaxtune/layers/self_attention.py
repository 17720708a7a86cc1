"""Self-attention with its four dense layers, as the encoders of text and images share it.

Letters: B batch, T tokens, D embed.
"""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.layers.attention import Implementation, attention
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.linear import Linear


class SelfAttention(nnx.Module):
    """o(attention(q(x), k(x), v(x))); heads are contiguous blocks of D. `bias` is that of q, k and v; o always has one."""

    def __init__(
        self, width: int, heads: int, *, bias: bool = True, deviation: float, implementation: Implementation = "auto", rngs: nnx.Rngs
    ):
        self.q, self.k, self.v = (Linear(width, width, bias=bias, deviation=deviation, rngs=rngs) for _ in range(3))
        self.o = Linear(width, width, deviation=deviation, rngs=rngs)
        self.heads = heads
        self.implementation: Implementation = implementation

    def __call__(self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None, noise: Dropout | None) -> Float[Array, "B T D"]:
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        mixed = attention(q, k, v, segment_ids=segment_ids, noise=noise, implementation=self.implementation)
        return self.o(mixed.reshape(x.shape))
