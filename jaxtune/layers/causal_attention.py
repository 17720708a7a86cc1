"""Causal self-attention of language models: grouped heads, rotary positions, norms of queries and keys, a cache of keys and values.

Letters: B batch, T tokens, S slots of the cache, D embed, N heads, K kv heads, H head dim, L layers.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.layers.attention import Implementation, attention
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.linear import Linear
from jaxtune.layers.norm import RmsNorm
from jaxtune.layers.rotary import Angles, rotate
from jaxtune.parallel.placement import constrain

QueryKeyNorm = Literal["none", "head", "all"]


@struct.dataclass
class Cache:
    """Keys (already turned) and values of all layers, by slot. A slot is the same for all rows: prompts are padded on the left."""

    k: Float[Array, "L B S K H"]
    v: Float[Array, "L B S K H"]

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], dtype: DTypeLike) -> Cache:
        """`shape` is (L, B, S, K, H)."""
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


@struct.dataclass
class Written:
    """A cache in use: where the tokens at hand go, and what all slots hold."""

    cache: Cache
    first: Int[Array, ""]  # slot of the first token at hand
    segment_ids: Int[Array, "B S"]
    begins: bool = struct.field(pytree_node=False, default=False)  # `first` is known to be 0 when the program is compiled

    def write(self, layer: Int[Array, ""], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]) -> tuple[Written, Array, Array]:
        """With these keys and values in one layer's slots; and that layer's [B, S, K, H] of both."""
        zero = jnp.zeros((), jnp.int32)
        place = (layer.astype(jnp.int32), zero, self.first.astype(jnp.int32), zero, zero)

        def put(all_layers: Array, new: Array) -> Array:
            placed = jax.lax.dynamic_update_slice(all_layers, new[None].astype(all_layers.dtype), place)
            return constrain(placed, None, "batch", None, "kv_heads", None)

        cache = Cache(put(self.cache.k, k), put(self.cache.v, v))
        whole_k, whole_v = (jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in (cache.k, cache.v))
        return self.replace(cache=cache), whole_k.astype(k.dtype), whole_v.astype(v.dtype)  # type: ignore[attr-defined]


class CausalAttention(nnx.Module):
    """o(attention(q(x), k(x), v(x))) with positions in q and k.

    `query_key_norm`: an RMS norm of queries and keys, each head by itself or over all heads at once. `scale` multiplies the scores
    (default H^-0.5), `soft_cap` bounds them.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        kv_heads: int,
        head_width: int,
        bias: bool,
        out_bias: bool,
        query_key_norm: QueryKeyNorm,
        epsilon: float,
        norm_offset: float,
        scale: float | None,
        soft_cap: float | None,
        implementation: Implementation,
        deviation: float,
        rngs: nnx.Rngs,
    ):
        self.q = Linear(width, heads * head_width, bias=bias, deviation=deviation, rngs=rngs)
        self.k = Linear(width, kv_heads * head_width, bias=bias, deviation=deviation, rngs=rngs)
        self.v = Linear(width, kv_heads * head_width, bias=bias, deviation=deviation, rngs=rngs)
        self.o = Linear(heads * head_width, width, bias=out_bias, deviation=deviation, rngs=rngs)
        widths = {"none": (0, 0), "head": (head_width, head_width), "all": (heads * head_width, kv_heads * head_width)}[query_key_norm]
        self.q_norm, self.k_norm = (RmsNorm(w, epsilon=epsilon, offset=norm_offset, rngs=rngs) if w else None for w in widths)
        self.norm_each_head = query_key_norm == "head"
        self.head_width, self.scale, self.soft_cap = head_width, scale, soft_cap
        self.implementation: Implementation = implementation

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        angles: Angles | None,
        *,
        window: int | None,
        layer: Int[Array, ""],
        written: Written | None,
        noise: Dropout | None,
    ) -> tuple[Float[Array, "B T D"], Written | None]:
        """The mixed tokens, and the cache (where there is one) with theirs added. `angles` None: this layer knows no positions."""
        q, k, v = self._heads(self.q(x), self.q_norm), self._heads(self.k(x), self.k_norm), self._heads(self.v(x), None)
        q = constrain(q, "batch", "token", "heads", None)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        seen, first = segment_ids, 0
        if written is not None:
            written, k, v = written.write(layer, k, v)
            seen, first = written.segment_ids, 0 if written.begins else written.first
        mixed = attention(
            q, k, v, segment_ids=segment_ids, key_segment_ids=seen, causal=True, window=window, first_query=first,
            scale=self.scale, soft_cap=self.soft_cap, noise=noise, implementation=self.implementation,
        )  # fmt: skip
        return self.o(mixed.reshape(*x.shape[:2], -1)), written

    def _heads(self, x: Float[Array, "B T X"], norm: RmsNorm | None) -> Float[Array, "B T N H"]:
        """Split into heads, normed before or after."""
        if norm is not None and not self.norm_each_head:
            x, norm = norm(x), None
        x = x.reshape(*x.shape[:2], -1, self.head_width)
        return x if norm is None else norm(x)
