"""A decoder as two steps: read the prompts into a cache, then one more token a row; and how the next token is chosen.

Prompts of a batch are padded on the left, so their last tokens stand in one slot and every later token of all rows in the next one.
All functions are pure and traced; a row's draws depend on seed, row and step alone, never on the batch or the devices around it.

Letters: B batch, T query tokens, S slots of the cache, P slots of the prompt, V vocab, L layers, K kv heads, H head dim, E end tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int

from jaxtune.parallel.placement import constrain

CACHE_AXES = (None, "batch", None, "kv_heads", None)  # L B S K H
BATCH_AXIS = 1  # of every array of the cache


@struct.dataclass
class Context:
    """What the rows have read so far.

    Generated slots count as there from the beginning: the causal mask hides those that are still to come.
    """

    cache: Any
    tokens: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]  # 0 where the prompt is padded
    lengths: Int[Array, " B"]  # real tokens of each row
    slot: Int[Array, ""]  # where the next token goes


def read_prompts(
    model: Any, tokens: Int[Array, "B P"], segment_ids: Int[Array, "B P"], new: int, dtype: Any
) -> tuple[Float[Array, "B V"], Context]:
    """The logits of each row's next token, and the context with room for `new` tokens."""
    rows, width = tokens.shape
    lengths = segment_ids.sum(1)
    positions = jnp.maximum(jnp.cumsum(segment_ids, 1) - 1, 0)
    slots = jnp.concatenate([segment_ids, jnp.ones((rows, new), jnp.int32)], 1)
    cache = placed(model.empty_cache(rows, width + new, dtype))
    features, cache = model.decode(tokens, slots, positions, cache, 0)
    read = jnp.pad(tokens, ((0, 0), (0, new)))
    return model.head.logits(model, features.pooled), Context(placed(cache), read, slots, lengths, jnp.int32(width))


def read_token(model: Any, token: Int[Array, " B"], context: Context) -> tuple[Float[Array, "B V"], Context]:
    """The same after one more token of every row.

    Where a text becomes longer than one of `model.rereads`, what the cache holds of it stands for nothing any more: it is read once
    more from its beginning.
    """
    slot, slots = context.slot, jnp.arange(context.tokens.shape[1])
    tokens = jax.lax.dynamic_update_slice(context.tokens, token[:, None], (jnp.int32(0), slot))
    lengths = context.lengths + 1

    def one_more(cache: Any) -> Any:
        return logits_of(token[:, None], context.segment_ids, context.lengths[:, None], cache, slot)

    def from_the_beginning(cache: Any) -> Any:
        known = jnp.where(slots[None] <= slot, context.segment_ids, 0)
        return logits_of(tokens, known, jnp.maximum(jnp.cumsum(known, 1) - 1, 0), cache, 0)

    def logits_of(*arguments: Any) -> Any:
        own = nnx.clone(model)  # a module may not be changed by a trace other than its own
        features, cache = own.decode(*arguments)
        return own.head.logits(own, features.pooled), placed(cache)

    passed = [(lengths == length + 1).any() for length in model.rereads if length < len(slots)]
    logits, cache = (
        jax.lax.cond(jnp.stack(passed).any(), from_the_beginning, one_more, context.cache) if passed else one_more(context.cache)
    )
    return logits, context.replace(cache=cache, tokens=tokens, lengths=lengths, slot=slot + 1)  # type: ignore[attr-defined]


def placed(cache: Any) -> Any:
    """Rows and kv heads of the cache where the mesh has them."""
    return jax.tree.map(lambda x: constrain(x, *CACHE_AXES) if x.ndim == len(CACHE_AXES) else x, cache)


# -- choosing ---------------------------------------------------------------------------------------------------------------


def greedy(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The most probable token; of equals the one with the lowest number."""
    return jnp.argmax(logits, -1).astype(jnp.int32)


def draw(
    logits: Float[Array, "B V"],
    keys: Array,
    temperature: Float[Array, ""],
    top_k: int | None = None,
    top_p: Float[Array, ""] | None = None,
) -> Int[Array, " B"]:
    """A token a row, drawn from softmax(logits / temperature): of the `top_k` most probable ones, and of those from the fewest whose
    probability reaches `top_p` (Holtzman et al. 2020). Always at least one token is left; ties at the edge go to lower numbers.

    Args:
        keys: one PRNG key per row.
    """
    scaled = logits / temperature
    vocabulary = logits.shape[-1]
    if top_k is None and top_p is None:
        return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
    values, tokens = jax.lax.top_k(scaled, vocabulary if top_k is None else min(top_k, vocabulary))
    if top_p is not None:
        probabilities = jax.nn.softmax(values, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        values = jnp.where(before < top_p, values, -jnp.inf)
    chosen = jax.vmap(jax.random.categorical)(keys, values)
    return jnp.take_along_axis(tokens, chosen[:, None], 1)[:, 0].astype(jnp.int32)


def row_keys(seed: Int[Array, ""], rows: Int[Array, " B"], step: Int[Array, ""] | int) -> Array:
    """A key for the draw of each row at a step."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def is_end(tokens: Int[Array, "..."], ends: tuple[int, ...]) -> Bool[Array, "..."]:
    found = jnp.zeros(tokens.shape, bool)
    for end in ends:
        found |= tokens == end
    return found
