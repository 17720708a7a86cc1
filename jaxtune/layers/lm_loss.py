"""The language-model head with its loss: the logits of a few positions at a time, and only of those that carry a loss.

Everything a loss asks of the logits is a number per position: the log of the sum of their exponentials, some of them, their mean.
`_readout` gives these with a gradient rule of its own; loss and log-probabilities are then plain formulas. Positions with a loss
are gathered to the front (on each device, of its own rows) and a loop of as many chunks as they fill runs over them: where a
twentieth of the positions carries a loss the head costs a twentieth, and no array of positions by vocabulary exists.

Letters: B batch, T tokens, D embed, V vocab, J candidates of a position; P = B T positions of a device, C positions of a chunk.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxtune.layers.cpu_math import compiled, exp2, narrow, on_cpu, stored
from jaxtune.layers.lm_share import Share
from jaxtune.parallel.placement import Placement, current

ON_CPU, ELSEWHERE = 128, 512  # positions of a chunk: what it is filled with is computed for nothing, its logits are [C, V] float32


class LanguageLoss(NamedTuple):
    """All are 0 where the target's weight is."""

    loss: Float[Array, "B T"]
    log_probability: Float[Array, "B T"]  # of the target
    is_highest: Bool[Array, "B T"]  # no token is likelier than the target; has no gradient


def lm_loss(
    hidden: Float[Array, "B T D"],
    weights: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    target_weight: Float[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    soft_cap: float | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> LanguageLoss:
    """The cross-entropy of each position's target, not multiplied by its weight, and the target's log-probability.

    The logits are soft_cap tanh(scale (hidden weights^T + bias) / soft_cap), in float32. `label_smoothing` spreads that share of
    the target over the vocabulary; `z_loss` times the squared log of the sum of exponentials is added (PaLM, arXiv 2204.02311).
    Positions of weight 0 have no part in anything, whatever their hidden values are. Loss and log-probability can be differentiated.
    """
    head = _Head(soft_cap, scale, 1.0, label_smoothing > 0, _size(chunk), current())
    log_sum, picked, mean, highest = _readout(head, hidden, weights, bias, targets[..., None], target_weight)
    log_probability = picked[..., 0] - log_sum
    loss = -(1.0 - label_smoothing) * log_probability + z_loss * jnp.square(log_sum)
    if label_smoothing > 0:
        loss += label_smoothing * (log_sum - mean)
    there = target_weight != 0
    return LanguageLoss(jnp.where(there, loss, 0.0), jnp.where(there, log_probability, 0.0), there & (picked[..., 0] >= highest))


def log_probabilities(
    hidden: Float[Array, "B T D"],
    weights: Float[Array, "V D"],
    candidates: Int[Array, "B T J"],
    target_weight: Float[Array, "B T"],
    *,
    bias: Float[Array, " V"] | None = None,
    soft_cap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Array, "B T J"]:
    """log p of several tokens at each position, such as those that a teacher holds likeliest; 0 where the weight is 0.

    `temperature` divides the logits, after the soft cap. Can be differentiated.
    """
    head = _Head(soft_cap, scale, temperature, False, _size(chunk), current())
    log_sum, picked, _, _ = _readout(head, hidden, weights, bias, candidates, target_weight)
    return jnp.where((target_weight != 0)[..., None], picked - log_sum[..., None], 0.0)


def top_log_probabilities(
    hidden: Float[Array, "B T D"],
    weights: Float[Array, "V D"],
    target_weight: Float[Array, "B T"],
    count: int,
    *,
    bias: Float[Array, " V"] | None = None,
    soft_cap: float | None = None,
    scale: float = 1.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Int[Array, "B T J"], Float[Array, "B T J"]]:
    """The `count` likeliest tokens of each position and log p of them, as a teacher gives them; 0 where the weight is 0.

    Without a gradient.
    """
    head = _Head(soft_cap, scale, temperature, False, _size(chunk), current())
    return _top(head, count, *lax.stop_gradient((hidden, weights, bias)), target_weight)


Readout = tuple[Array, Array, Array, Array]  # log of the sum, candidates' logits, mean and highest logit of each position


def _size(chunk: int | None) -> int:
    return chunk or (ON_CPU if on_cpu() else ELSEWHERE)


class _Head(NamedTuple):
    """What is known when the program is compiled."""

    soft_cap: float | None
    scale: float
    temperature: float
    with_mean: bool
    chunk: int
    placement: Placement | None

    @property
    def factor(self) -> float:
        """Of the gradient of what the weights give, from that of the logits; the soft cap's slope comes on top."""
        return self.scale / self.temperature


@struct.dataclass
class _Found:
    """What the forward pass finds; 0 at positions without a loss. The last two are for the gradient of `hidden`."""

    highest: Float[Array, "B T"]  # logit
    log_sum: Float[Array, "B T"]  # log of the sum of the logits' exponentials
    picked: Float[Array, "B T J"]  # the candidates' logits
    mean: Float[Array, "B T"]  # logit
    expected: Float[Array, "B T D"] | None  # sum over V of probability x slope x weights
    level: Float[Array, "B T D"] | None  # mean over V of slope x weights


@struct.dataclass
class _Wanted:
    """Which gradients are asked for."""

    hidden: bool = struct.field(pytree_node=False)
    head: bool = struct.field(pytree_node=False)


def _found(head: _Head, for_hidden: bool, hidden: Array, weights: Array, bias: Array | None, candidates: Array, weight: Array) -> _Found:
    share = Share.of(head.placement, hidden, weights)
    row, part = PartitionSpec(share.rows), PartitionSpec(share.vocabulary)
    run = share.spread(functools.partial(_find, head, share, for_hidden), (row, part, part, row, row), row)
    return run(hidden, weights, bias, candidates, weight)


def _primal(head: _Head, hidden: Array, weights: Array, bias: Array | None, candidates: Array, weight: Array) -> Readout:
    found = _found(head, False, hidden, weights, bias, candidates, weight)
    return found.log_sum, found.picked, found.mean, found.highest


def _rule_forward(head: _Head, *primals: CustomVJPPrimal | None) -> tuple[Readout, Any]:
    """One product where `hidden` has no gradient, else two: the one of the backward pass is done while the logits are there."""
    asked = [primal is not None and primal.perturbed for primal in primals]
    wanted = _Wanted(asked[0], asked[1] or asked[2])
    values = tuple(None if primal is None else primal.value for primal in primals)
    found = _found(head, wanted.hidden, *values)  # type: ignore[arg-type]
    return (found.log_sum, found.picked, found.mean, found.highest), (wanted, values, found)


def _rule_backward(head: _Head, saved: Any, gradients: tuple[Any, ...]) -> tuple[Array | None, Array | None, Array | None, None, None]:
    """No product for `hidden`; for a head that trains, its logits once more and one product. The highest logit is only compared with."""
    wanted, (hidden, weights, bias, candidates, weight), found = saved
    there = weight != 0
    to_sum, to_picked, to_mean = (jnp.zeros(g.shape, jnp.float32) if isinstance(g, SymbolicZero) else g for g in gradients[:3])
    to_sum, to_picked, to_mean = (
        jnp.where(there, to_sum, 0.0),
        jnp.where(there[..., None], to_picked, 0.0),
        jnp.where(there, to_mean, 0.0),
    )
    if head.soft_cap is not None:
        to_picked *= 1.0 - jnp.square(found.picked * (head.temperature / head.soft_cap))
    share = Share.of(head.placement, hidden, weights)
    row, part = PartitionSpec(share.rows), PartitionSpec(share.vocabulary)
    to_hidden = to_weights = to_bias = None
    if wanted.hidden:
        run = share.spread(functools.partial(_picked_rows, head, share), (part, row, row, row), row)
        to_hidden = run(weights, candidates, weight, to_picked) + to_sum[..., None] * found.expected
        if head.with_mean:
            to_hidden += to_mean[..., None] * found.level
        to_hidden = (head.factor * to_hidden).astype(hidden.dtype)
    if wanted.head:
        run = share.spread(functools.partial(_head_gradient, head, share), (row, part, part, *[row] * 7), (part, part))
        of_rows = (candidates, weight, found.highest, found.log_sum, to_sum, to_picked, to_mean)
        to_weights, to_bias = run(hidden, weights, bias, *of_rows)
        to_weights = to_weights.astype(weights.dtype)
        to_bias = None if bias is None else to_bias.astype(bias.dtype)
    return to_hidden, to_weights, to_bias, None, None


def _likeliest(head: _Head, count: int, hidden: Array, weights: Array, bias: Array | None, weight: Array) -> tuple[Array, Array]:
    share = Share.of(head.placement, hidden, weights)
    row, part = PartitionSpec(share.rows), PartitionSpec(share.vocabulary)
    run = share.spread(functools.partial(_highest, head, share, count), (row, part, part, row), row)
    return run(hidden, weights, bias, weight)


_top = compiled(_likeliest, static=(0, 1))
_readout = jax.custom_vjp(compiled(_primal, static=(0,)), nondiff_argnums=(0,))
_readout.defvjp(_rule_forward, _rule_backward, symbolic_zeros=True)


# -- what one device does: its own rows, its own part of the vocabulary -------------------------------------------------------


def _find(
    head: _Head, share: Share, for_hidden: bool, hidden: Array, weights: Array, bias: Array | None, candidates: Array, weight: Array
) -> _Found:
    rows, candidates, table = _flat(hidden), _flat(candidates), weights.astype(hidden.dtype)
    vocabulary = len(table) * share.parts
    even = table.astype(jnp.float32).mean(0)[None] / share.parts  # the level of every position, where no soft cap differs

    def visit(at: Array, found: dict[str, Array]) -> dict[str, Array]:
        x = _take(rows, at)
        logits, slope = _logits(head, jnp.einsum("CD,VD->CV", x, table, preferred_element_type=jnp.float32), bias, 1)
        highest = logits.max(-1)
        exponentials = _exp(logits - highest[:, None], x.dtype)
        own, mine = share.own(_take(candidates, at), len(table))
        new = {"highest": highest, "total": exponentials.sum(-1)}
        new["picked"] = jnp.where(mine, jnp.take_along_axis(logits, own, 1), 0.0)
        if head.with_mean:
            new["mean"] = logits.sum(-1) / vocabulary
        if for_hidden:
            new["expected"] = _mix(exponentials if slope is None else exponentials * slope, table)
        if for_hidden and head.with_mean:
            new["level"] = jnp.broadcast_to(even, x.shape) if slope is None else _mix(slope, table) / vocabulary
        return {name: found[name].at[at].set(value, mode="drop") for name, value in new.items()}

    count, zeros = len(rows), functools.partial(jnp.zeros, dtype=jnp.float32)
    start = {"highest": zeros(count), "total": zeros(count) + 1.0, "picked": zeros(candidates.shape)}
    start |= {"mean": zeros(count)} if head.with_mean else {}
    start |= {"expected": zeros(rows.shape)} if for_hidden else {}
    start |= {"level": zeros(rows.shape)} if for_hidden and head.with_mean else {}
    found = share.joined(_over_chunks(head, weight, visit, start))
    if for_hidden:
        found["expected"] = found["expected"] / found["total"][:, None]
    log_sum = found["highest"] + jnp.log(found.pop("total"))
    whole = {name: value.reshape(*hidden.shape[:2], *value.shape[1:]) for name, value in (found | {"log_sum": log_sum}).items()}
    return _Found(**({"mean": jnp.zeros(hidden.shape[:2], jnp.float32), "expected": None, "level": None} | whole))


def _picked_rows(head: _Head, share: Share, weights: Array, candidates: Array, weight: Array, to_picked: Array) -> Float[Array, "B T D"]:
    """The rows of the candidates, weighed with their gradients."""
    (batch, length, _), candidates, to_picked = candidates.shape, _flat(candidates), _flat(to_picked)

    def visit(at: Array, total: Array) -> Array:
        own, mine = share.own(_take(candidates, at), len(weights))
        amount = jnp.where(mine, _take(to_picked, at), 0.0)
        return total.at[at].set(jnp.einsum("CJ,CJD->CD", amount, weights[own].astype(jnp.float32)), mode="drop")

    total = _over_chunks(head, weight, visit, jnp.zeros((batch * length, weights.shape[-1]), jnp.float32))
    return share.over_vocabulary(total).reshape(batch, length, -1)


def _head_gradient(
    head: _Head, share: Share,
    hidden: Array, weights: Array, bias: Array | None,
    candidates: Array, weight: Array, highest: Array, log_sum: Array, to_sum: Array, to_picked: Array, to_mean: Array,
) -> tuple[Float[Array, "V D"], Float[Array, " V"]]:  # fmt: skip
    """Of weights and bias, in float32.

    The logits stand with V first: the product with `hidden` then needs no transposed copy of them, which on CPU takes longer
    than their computation (100 ms against 20 for 128 positions of 49,152). Rows are scaled on D numbers, not on V.
    """
    table, rows, ratio = weights.astype(hidden.dtype), _flat(hidden), jnp.exp(highest - log_sum)
    each = tuple(_flat(x) for x in (candidates, highest, to_sum * ratio * head.factor, to_picked * head.factor, to_mean * head.factor))
    vocabulary = len(table) * share.parts

    def visit(at: Array, total: tuple[Array, Array]) -> tuple[Array, Array]:
        x = _take(rows, at)
        chosen, top, amount, of_chosen, of_mean = (_take(one, at) for one in each)
        logits, slope = _logits(head, jnp.einsum("VD,CD->VC", table, x, preferred_element_type=jnp.float32), bias, 0)
        dense, scaled = _exp(logits - top[None], x.dtype), amount
        if head.with_mean:
            dense, scaled = dense * amount[None] + (of_mean / vocabulary)[None], jnp.ones_like(amount)
        if slope is not None:
            dense = dense * slope
        own, mine = share.own(chosen, len(table))
        of_chosen = jnp.where(mine, of_chosen, 0.0)
        if own.shape[-1] == 1:
            # The target's own share is taken out of the product, to be rounded after its difference from 1 and not before.
            here = jnp.arange(len(table))[:, None] == jnp.where(mine, own, -1).T
            of_chosen += jnp.where(mine, jnp.take_along_axis(dense, own.T, 0).T * scaled[:, None], 0.0)
            dense = jnp.where(here, 0.0, dense)
        right = x if head.with_mean else (x.astype(jnp.float32) * scaled[:, None]).astype(x.dtype)
        of_weights, of_bias = total
        of_weights += jnp.einsum("VC,CD->VD", _narrow(dense, x.dtype), right, preferred_element_type=jnp.float32)
        of_weights = of_weights.at[own].add(of_chosen[..., None] * x.astype(jnp.float32)[:, None])
        if bias is not None:
            of_bias = (of_bias + (dense * scaled[None]).sum(-1)).at[own].add(of_chosen)
        return of_weights, of_bias

    start = jnp.zeros(weights.shape, jnp.float32), jnp.zeros(len(weights), jnp.float32)
    return share.over_rows(_over_chunks(head, weight, visit, start))


def _highest(
    head: _Head, share: Share, count: int, hidden: Array, weights: Array, bias: Array | None, weight: Array
) -> tuple[Int[Array, "B T J"], Float[Array, "B T J"]]:
    rows, table = _flat(hidden), weights.astype(hidden.dtype)

    def visit(at: Array, found: dict[str, Array]) -> dict[str, Array]:
        product = jnp.einsum("CD,VD->CV", _take(rows, at), table, preferred_element_type=jnp.float32)
        logits, _ = _logits(head, product, bias, 1)
        values, tokens = lax.top_k(logits, count)
        total = _exp(logits - values[:, :1], hidden.dtype).sum(-1)
        new = {"highest": values[:, 0], "total": total, "values": values, "tokens": share.everywhere(tokens, len(table))}
        return {name: found[name].at[at].set(value, mode="drop") for name, value in new.items()}

    zero = jnp.zeros(len(rows), jnp.float32)
    start = {"highest": zero, "total": zero + 1.0, "values": jnp.zeros((len(rows), count), jnp.float32)}
    start["tokens"] = jnp.zeros((len(rows), count), jnp.int32)
    found = _over_chunks(head, weight, visit, start)
    values, tokens = share.highest_of_all(found.pop("values"), found.pop("tokens"))
    found = share.joined(found)
    there = _flat(weight)[:, None] != 0
    log_p = values - (found["highest"] + jnp.log(found["total"]))[:, None]
    tokens, log_p = (jnp.where(there, x, 0).reshape(*weight.shape, count) for x in (tokens, log_p))
    return tokens, log_p


def _over_chunks[Carry](head: _Head, weight: Array, visit: Callable[[Array, Carry], Carry], carry: Carry) -> Carry:
    """`visit(positions, carry)` for each chunk of the positions with a loss; the last one is filled with a number out of range."""
    there = weight.reshape(-1) != 0
    size = min(head.chunk, there.size)
    order = jnp.nonzero(there, size=-(-there.size // size) * size, fill_value=there.size)[0]
    step = lambda i, carry: visit(lax.dynamic_slice_in_dim(order, i * size, size), carry)  # noqa: E731
    return lax.fori_loop(0, -(-there.sum() // size), step, carry)


def _logits(head: _Head, product: Array, bias: Array | None, axis: int) -> tuple[Array, Array | None]:
    """The logits and the slope of their soft cap, float32; the vocabulary is this axis."""
    logits = product
    if bias is not None:
        logits += jnp.expand_dims(bias.astype(jnp.float32), 1 - axis)
    logits, slope = logits * head.scale, None
    if head.soft_cap is not None:
        share = jnp.tanh(logits / head.soft_cap)
        logits, slope = head.soft_cap * share, stored(1.0 - share * share)
    return stored(logits / head.temperature), slope


def _exp(x: Array, dtype: DTypeLike) -> Array:
    """e^x in float32, exact enough for `dtype`."""
    return exp2(x * np.float32(math.log2(math.e)), dtype) if on_cpu() else jnp.exp(x)


def _mix(dense: Array, table: Array) -> Float[Array, "C D"]:
    return jnp.einsum("CV,VD->CD", _narrow(dense, table.dtype), table, preferred_element_type=jnp.float32)


def _narrow(dense: Array, dtype: DTypeLike) -> Array:
    return stored(narrow(dense, dtype)) if on_cpu() else dense.astype(dtype)


def _flat(x: Array) -> Array:
    """[B, T, ...] -> [P, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _take(x: Array, at: Array) -> Array:
    """x [P, ...] at these positions, 0 where the number is out of range."""
    return x.at[at].get(mode="fill", fill_value=0)
