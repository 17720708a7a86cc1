"""Beam search: the `beams` most probable beginnings of every row go on together, and the best whole answer wins.

An answer scores its log-probability divided by length ** length_penalty, its end token counted (Wu et al. 2016 with the plain power of
the length). Only the best answer that has ended is kept, because a row is done exactly when no open beginning can still beat it.

Letters: B batch, M beams, N new tokens, V vocab, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxtune.models.decoding import BATCH_AXIS, Context, is_end


@struct.dataclass
class Search:
    """Where all rows stand after `step` tokens."""

    step: Int[Array, ""]
    tokens: Int[Array, "B M N"]
    sums: Float[Array, "B M"]  # log-probability of each beginning; -inf where there is none
    best: Int[Array, "B N"]  # the best answer that has ended
    best_score: Float[Array, " B"]
    done: Bool[Array, " B"]
    context: Context


def beam_search(
    logits: Float[Array, "B V"],
    context: Context,
    read: Callable[[Int[Array, " R"], Context], tuple[Float[Array, "R V"], Context]],
    *,
    beams: int,
    new: int,
    length_penalty: Float[Array, ""],
    ends: tuple[int, ...],
    absent: Bool[Array, " B"],
) -> Int[Array, "B N"]:
    """The best answer of each row, filled up with end tokens.

    Args:
        logits: of the first new token, after the prompts that `context` has read.
        read: the logits after one more token of R = B x M rows.
        absent: rows that only fill up the batch.
    """
    rows = len(logits)
    fill = ends[0] if ends else 0
    start = Search(
        step=jnp.int32(0),
        tokens=jnp.full((rows, beams, new), fill, jnp.int32),
        sums=jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0.0),  # all beams are the prompt: one of them is enough
        best=jnp.full((rows, new), fill, jnp.int32),
        best_score=jnp.full((rows,), -jnp.inf),
        done=absent,
        context=repeated(context, beams),
    )
    search = extended(start, jnp.repeat(logits, beams, 0), length_penalty, ends)

    def goes_on(search: Search) -> Bool[Array, ""]:
        return (search.step < new) & ~search.done.all()

    def one_more(search: Search) -> Search:
        last = jnp.take(search.tokens, search.step - 1, 2).reshape(-1)
        logits, context = read(last, search.context)
        return extended(search.replace(context=context), logits, length_penalty, ends)  # type: ignore[attr-defined]

    search = jax.lax.while_loop(goes_on, one_more, search)
    scores = search.sums / jnp.float32(new) ** length_penalty  # what is open at the end has all `new` tokens
    open_best, open_score = jnp.argmax(scores, 1), scores.max(1)
    found = jnp.take_along_axis(search.tokens, open_best[:, None, None], 1)[:, 0]
    unbeaten = (open_score > search.best_score) & (search.step == new)
    return jnp.where(unbeaten[:, None], found, search.best)


def extended(search: Search, logits: Float[Array, "R V"], length_penalty: Float[Array, ""], ends: tuple[int, ...]) -> Search:
    """Every beginning with one more token: the best that go on, and the best answer so far.

    An answer counts when its end is among the `beams` best candidates of all, so that a search does not end early on improbable ends.
    """
    rows, beams, new = search.tokens.shape
    vocabulary = logits.shape[-1]
    each = search.sums[:, :, None] + jax.nn.log_softmax(logits, -1).reshape(rows, beams, vocabulary)
    # of so many candidates `beams` do not end, because a beginning ends in len(ends) ways
    sums, index = jax.lax.top_k(each.reshape(rows, -1), min(beams * (1 + len(ends)), beams * vocabulary))
    parent, token = index // vocabulary, (index % vocabulary).astype(jnp.int32)
    ended = is_end(token, ends)
    length = search.step + 1

    counted = ended & (jnp.arange(sums.shape[1]) < beams)[None]
    scores = jnp.where(counted, sums / length.astype(jnp.float32) ** length_penalty, -jnp.inf)
    place, score = jnp.argmax(scores, 1), scores.max(1)
    better = (score > search.best_score) & ~search.done
    answer = with_token(search, parent, token, place[:, None])[:, 0]
    best = jnp.where(better[:, None], answer, search.best)
    best_score = jnp.where(better, score, search.best_score)

    kept_sums, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, sums), beams)
    tokens = with_token(search, parent, token, kept)
    # sums only fall; with a positive penalty the longest answer is the cheapest, with a negative one the next
    cheapest = jnp.where(length_penalty > 0, jnp.float32(new), (length + 1).astype(jnp.float32))
    reachable = kept_sums[:, 0] / cheapest**length_penalty
    source = jnp.take_along_axis(parent, kept, 1) + jnp.arange(rows)[:, None] * beams
    return Search(
        step=length,
        tokens=jnp.where(search.done[:, None, None], search.tokens, tokens),
        sums=jnp.where(search.done[:, None], search.sums, kept_sums),
        best=best,
        best_score=best_score,
        done=search.done | (best_score >= reachable),
        context=reordered(search.context, source.reshape(-1)),
    )


def with_token(search: Search, parent: Array, token: Array, picked: Int[Array, "B C"]) -> Int[Array, "B C N"]:
    """The token rows of some candidates."""
    beginnings = jnp.take_along_axis(search.tokens, jnp.take_along_axis(parent, picked, 1)[:, :, None], 1)
    new_tokens = jnp.take_along_axis(token, picked, 1)
    return jax.lax.dynamic_update_slice_in_dim(beginnings, new_tokens[:, :, None], search.step, 2)


def repeated(context: Context, beams: int) -> Context:
    """Every row `beams` times, one behind the other."""
    return by_row(context, lambda x, axis: jnp.repeat(x, beams, axis))


def reordered(context: Context, source: Int[Array, " R"]) -> Context:
    return by_row(context, lambda x, axis: jnp.take(x, source, axis))


def by_row(context: Context, change: Callable[[Any, int], Any]) -> Context:
    return context.replace(  # type: ignore[attr-defined]
        cache=jax.tree.map(lambda x: change(x, BATCH_AXIS), context.cache),
        tokens=change(context.tokens, 0),
        segment_ids=change(context.segment_ids, 0),
        lengths=change(context.lengths, 0),
    )
