"""The one decoder of all language models: what its families differ in is a field of `DecoderShape`, never a subclass.

Blocks that differ only in how they see (window, positions) are one stack with a kind per layer, so a scan compiles the shortest
repeating group of them. Positions are counted inside each segment over real tokens, so padding on either side and packing change nothing.

Letters: B batch, T tokens, S slots of a cache, D embed, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.layers.causal_attention import Cache, CausalAttention, QueryKeyNorm, Written
from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.experts import Experts, Load
from jaxtune.layers.feed_forward import FeedForward
from jaxtune.layers.linear import Embedding
from jaxtune.layers.norm import LayerNorm, RmsNorm
from jaxtune.layers.rotary import Angles, Rope, count_positions, text_lengths
from jaxtune.layers.stack import Stack, StackOptions
from jaxtune.models.family import Features
from jaxtune.parallel.placement import constrain


@dataclass(frozen=True)
class Kind:
    """How one layer sees: its window (None: everything before) and which of the shape's ropes turns it (None: no positions)."""

    window: int | None = None
    rope: int | None = 0


@dataclass(frozen=True)
class Mixture:
    """Experts in place of the feed-forward part."""

    count: int
    chosen: int
    width: int
    normalise: bool


@dataclass(frozen=True)
class DecoderShape:
    """Sizes and switches of one decoder."""

    vocabulary: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp: int
    kinds: tuple[Kind, ...]  # one per layer
    activation: str
    epsilon: float
    deviation: float
    ropes: tuple[Rope, ...] = ()
    positions: int = 0  # rows of a table of learned positions; 0: there is none
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_before: bool = True  # of attention and mlp
    norm_after: bool = False  # of what attention and mlp give, before it is added
    parallel: bool = False  # attention and mlp read the same x
    query_key_norm: QueryKeyNorm = "none"
    attention_bias: bool = False  # of q, k and v
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    mixture: Mixture | None = None
    attention_scale: float | None = None  # None: head_width ** -0.5
    attention_soft_cap: float | None = None
    embedding_scale: float | None = None

    @property
    def layers(self) -> int:
        return len(self.kinds)

    def make_norm(self, rngs: nnx.Rngs) -> LayerNorm | RmsNorm:
        if self.norm == "layer":
            return LayerNorm(self.width, epsilon=self.epsilon, rngs=rngs)
        return RmsNorm(self.width, epsilon=self.epsilon, offset=self.norm_offset, rngs=rngs)


@struct.dataclass
class Flow:
    """What goes from block to block."""

    x: Float[Array, "B T D"]
    written: Written | None = None
    load: Load | None = None


class Block(nnx.Module):
    """x + attention, x + mlp, each normed before, after or both; or x + attention + mlp."""

    def __init__(self, c: DecoderShape, *, options: StackOptions, rngs: nnx.Rngs):
        self.attn = CausalAttention(
            c.width, heads=c.heads, kv_heads=c.kv_heads, head_width=c.head_width, bias=c.attention_bias, out_bias=c.out_bias,
            query_key_norm=c.query_key_norm, epsilon=c.epsilon, norm_offset=c.norm_offset, scale=c.attention_scale,
            soft_cap=c.attention_soft_cap, implementation=options.attention, deviation=c.deviation, rngs=rngs,
        )  # fmt: skip
        if c.mixture is None:
            self.mlp = FeedForward(
                c.width, c.mlp, activation=c.activation, gated=c.gated, bias=c.mlp_bias, deviation=c.deviation, rngs=rngs
            )
        else:
            self.mlp = Experts(
                c.width, c.mixture.width, count=c.mixture.count, chosen=c.mixture.chosen, normalise=c.mixture.normalise,
                activation=c.activation, deviation=c.deviation, rngs=rngs,
            )  # fmt: skip
        self.attn_norm, self.mlp_norm = (c.make_norm(rngs) if c.norm_before else None for _ in range(2))
        self.post_attn_norm, self.post_mlp_norm = (c.make_norm(rngs) if c.norm_after else None for _ in range(2))
        self.parallel = c.parallel

    def __call__(
        self,
        flow: Flow,
        segment_ids: Int[Array, "B T"],
        angles: tuple[Angles, ...],
        *,
        kind: Kind,
        layer: Int[Array, ""],
        noise: Dropout | None,
    ) -> Flow:
        x, load = flow.x, flow.load
        turned = None if kind.rope is None else angles[kind.rope]
        y, written = self.attn(
            _normed(self.attn_norm, x), segment_ids, turned, window=kind.window, layer=layer, written=flow.written, noise=noise
        )
        y = dropout(_normed(self.post_attn_norm, y), noise, "attn.out")
        attended = constrain(x + y, "batch", "token", None)
        h = _normed(self.mlp_norm, x if self.parallel else attended)
        if isinstance(self.mlp, Experts):
            assert load is not None
            h, load = self.mlp(h, segment_ids, load)
        else:
            h = self.mlp(h)
        h = dropout(_normed(self.post_mlp_norm, h), noise, "mlp.out")
        return Flow(constrain(attended + h, "batch", "token", None), written, load)


def _normed(norm: nnx.Module | None, x: Array) -> Array:
    return x if norm is None else norm(x)  # type: ignore[operator]


class Embeddings(nnx.Module):
    """Token rows, scaled where the family does so, plus learned positions where it has them."""

    def __init__(self, c: DecoderShape, *, rngs: nnx.Rngs):
        self.token = Embedding(c.vocabulary, c.width, deviation=c.deviation, rngs=rngs)
        self.position = Embedding(c.positions, c.width, deviation=c.deviation, rngs=rngs) if c.positions else None
        self.scale = c.embedding_scale

    def __call__(self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T D"]:
        x = self.token(tokens).astype(dtype)
        if self.scale is not None:
            x = x * jnp.asarray(self.scale, dtype)  # rounded to the compute precision, as the checkpoints were trained
        return x if self.position is None else x + self.position(positions).astype(dtype)


class Decoder(nnx.Module):
    """tokens, segment_ids [, positions] -> Features; `pooled` is the last real token of each row."""

    def __init__(self, c: DecoderShape, *, options: StackOptions, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = Embeddings(c, rngs=rngs)
        self.layers = Stack(lambda rngs: Block(c, options=options, rngs=rngs), c.layers, kinds=c.kinds, options=options, rngs=rngs)
        self.norm = c.make_norm(rngs)
        self.head: nnx.Module | None = nnx.data(None)
        self.shape = c
        self.dtype = jnp.dtype(dtype)

    def __call__(self, batch: Mapping[str, jax.Array], noise: Dropout | None = None, training: bool = False) -> Features:
        segment_ids = batch["segment_ids"]
        positions = batch["positions"] if "positions" in batch else count_positions(segment_ids)
        lengths = text_lengths(positions, segment_ids)
        return self._run(batch["tokens"], segment_ids, positions, lengths, None, noise)[0]

    @property
    def rereads(self) -> tuple[int, ...]:
        """Lengths beyond which all positions of a text turn otherwise than before, so that it must be read anew (LongRoPE)."""
        return tuple(sorted({rope.original for rope in self.shape.ropes if rope.long_speeds is not None}))

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike) -> Cache:
        """For rows of up to `slots` tokens, padding included."""
        c = self.shape
        return Cache.empty((c.layers, batch, slots, c.kv_heads, c.head_width), dtype)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B T"],
        cache: Cache,
        first: int | Int[Array, ""],
    ) -> tuple[Features, Cache]:
        """The features of T new tokens, which are written to slots first, first + 1, ...; and the cache with them.

        Args:
            segment_ids: of all slots, 0 where there is nothing (yet).
            first: the same for all rows: prompts are padded on the left. A plain 0 lets attention skip what no token sees yet.

        A scaling that depends on the text's length takes the length so far, and leaves the keys that are cached as they are: right for
        those that grow with it, as the checkpoints are used, and wrong for those that change at once (`rereads`).
        """
        own = jax.lax.dynamic_slice_in_dim(segment_ids, first, tokens.shape[1], 1)
        lengths = jnp.broadcast_to(positions.max(1, keepdims=True) + 1, positions.shape)
        written = Written(cache, jnp.asarray(first, jnp.int32), segment_ids, begins=isinstance(first, int) and first == 0)
        features, written = self._run(tokens, own, positions, lengths, written, None)
        assert written is not None
        return features, written.cache

    def _run(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        lengths: Int[Array, "B T"],
        written: Written | None,
        noise: Dropout | None,
    ) -> tuple[Features, Written | None]:
        c = self.shape
        x = dropout(self.embeddings(tokens, positions, self.dtype), noise, "embeddings")
        angles = tuple(rope.angles(positions, lengths) for rope in c.ropes)
        load = None if c.mixture is None else Load.none(c.mixture.count)
        flow = Flow(constrain(x, "batch", "token", None), written, load)
        flow = self.layers(flow, segment_ids, angles, noise=noise)
        real = jnp.where(segment_ids > 0, jnp.arange(segment_ids.shape[1])[None], 0)
        last = jnp.take_along_axis(flow.x, real.max(1)[:, None, None], 1)[:, 0]
        imbalance = None if flow.load is None else flow.load.imbalance()
        # The last tokens are normed by themselves: a classifier asks for nothing else.
        return Features(self.norm(last), self.norm(flow.x), imbalance), flow.written
