"""Who sees whom in attention, said by integers and never by a [T, S] argument, so every implementation builds what it needs.

Segments serve padding and packing alike. Padding (segment 0) is never seen but sees every real key, as checkpoints were trained:
their masks hide keys alone, and a text padded on the left is read from its first, padded, position.

Letters: B batch, T/S query/key tokens.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


@struct.dataclass
class Visibility:
    """Segments and slots of queries and keys, and the rule between them.

    Slots count along the row, padding included: keys stand at 0..S-1 and queries at `first_query`... Causal: a query sees keys
    at its own slot and before; with a window w only the last w of them, its own among them.
    """

    segment_ids: Int[Array, "B T"] | None
    key_segment_ids: Int[Array, "B S"] | None
    first_query: Int[Array, ""] | None  # None: 0, and known to be 0 when the program is compiled
    causal: bool = struct.field(pytree_node=False)
    window: int | None = struct.field(pytree_node=False)

    @classmethod
    def of(
        cls,
        segment_ids: Int[Array, "B T"] | None,
        key_segment_ids: Int[Array, "B S"] | None,
        causal: bool,
        window: int | None,
        first_query: int | Int[Array, ""],
    ) -> Visibility:
        """From the arguments of `attention`; keys without segments of their own have those of the queries."""
        assert window is None or (causal and window > 0), f"window {window} goes with causal attention and counts at least the query itself"
        if segment_ids is None:
            assert key_segment_ids is None, "key_segment_ids without segment_ids"
        elif key_segment_ids is None:
            key_segment_ids = segment_ids
        at_zero = isinstance(first_query, int) and first_query == 0
        return cls(segment_ids, key_segment_ids, None if at_zero else jnp.asarray(first_query, jnp.int32), causal, window)

    def reach(self, queries: range, keys: int) -> range:
        """The keys that any of these queries can see by its slot, as far as it is known when the program is compiled."""
        if not self.causal or self.first_query is not None:
            return range(keys)
        first = 0 if self.window is None else max(0, queries.start - self.window + 1)
        return range(min(first, keys - 1), min(max(queries.stop, 1), keys))

    def mask(self, queries: range, keys: range) -> Bool[Array, "X 1 T S"] | None:
        """Which of these queries sees which of these keys (X is B or 1); None when all see all."""
        visible = self.segments(queries, keys)
        if self.causal:
            first = 0 if self.first_query is None else self.first_query
            slots = first + jnp.arange(queries.start, queries.stop)
            before = slots[:, None] - jnp.arange(keys.start, keys.stop)[None, :]
            allowed = before >= 0 if self.window is None else (before >= 0) & (before < self.window)
            visible = allowed[None, None] if visible is None else visible & allowed[None, None]
        return visible

    def segments(self, queries: range, keys: range) -> Bool[Array, "B 1 T S"] | None:
        """What the segments alone allow."""
        if self.segment_ids is None or self.key_segment_ids is None:
            return None
        of_query = self.segment_ids[:, None, queries.start : queries.stop, None]
        of_key = self.key_segment_ids[:, None, None, keys.start : keys.stop]
        return (of_key != 0) & ((of_query == of_key) | (of_query == 0))
