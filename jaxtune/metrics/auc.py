"""The area under the ROC curve from two histograms per class, so that no score has to be kept.

Scores are binned by their log-odds, not by their probability: a fine-tuned model's probabilities crowd at 0 and 1, where
equal bins of probability would lose their order. The bins are equal in asinh(100 x log-odds): with 4096 of them 0.00005 wide
at log-odds 0, where an untrained model's scores lie, and 0.5 % of the value far out, up to log-odds of 64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field

from jaxtune.metrics.base import Metric, Numbers, State, counted, target_of
from jaxtune.metrics.sums import COUNT, read_count, zero_count

_FINE = 0.01
_LARGEST = 64.0


class Auc(Metric):
    """`auc`: the mean over classes of one-against-the-rest areas (two classes: the usual area; multi-label: the mean over labels).

    Classes without a positive or without a negative example are left out. Pairs of a positive and a negative in the same bin
    count one half, so the result is off by at most half the share of such pairs (`error_bound`).
    """

    reads: ClassVar[tuple[str, ...]] = ("logits",)
    higher_is_better: ClassVar[Mapping[str, bool]] = {"auc": True}

    bins: int = Field(default=4096, ge=16, description="Histogram cells per class; memory is 8 bytes x bins x classes.")

    def start(self, classes: int) -> State:
        return {"histogram": zero_count(2, classes, self.bins)}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        logits = predictions["logits"].astype(jnp.float32)
        if "label" in batch:
            odds = log_odds(logits)
            positive = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=bool)
        else:
            odds = logits
            positive = target_of(self, batch) > 0.5
        where = (positive.astype(jnp.int32), jnp.broadcast_to(jnp.arange(logits.shape[-1])[None], odds.shape), self._bin(odds))
        counts = jnp.broadcast_to(counted(batch)[:, None], odds.shape).astype(COUNT)
        return {"histogram": state["histogram"].at[where].add(counts)}

    def compute(self, state: State) -> Numbers:
        negative, positive = read_count(state["histogram"]).astype(np.float64)  # [C, bins] each
        below = np.cumsum(negative, -1) - negative
        won = np.sum(positive * (below + 0.5 * negative), -1)
        return {"auc": _mean_over_defined(won, positive, negative)}

    def error_bound(self, state: State) -> float:
        """How far `auc` can be from the value over exact scores, computed from the histograms themselves."""
        negative, positive = read_count(state["histogram"]).astype(np.float64)
        return _mean_over_defined(0.5 * np.sum(positive * negative, -1), positive, negative)

    def _bin(self, odds: Float[Array, "B C"]) -> Int[Array, "B C"]:
        share = jnp.arcsinh(odds / _FINE) / (2.0 * math.asinh(_LARGEST / _FINE)) + 0.5
        share = jnp.where(jnp.isnan(share), 0.0, jnp.clip(share, 0.0, 1.0))
        return jnp.minimum((share * self.bins).astype(jnp.int32), self.bins - 1)


def log_odds(logits: Float[Array, "B C"]) -> Float[Array, "B C"]:
    """log(p / (1 - p)) of every class under softmax, exact also where p rounds to 1 in float32."""
    is_top = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(is_top, -jnp.inf, logits), -1, keepdims=True)
    log_p = jax.nn.log_softmax(logits, -1)
    at_most_half = jnp.minimum(log_p, -math.log(2.0))
    return jnp.where(is_top, logits - rest, log_p - jnp.log1p(-jnp.exp(at_most_half)))


def _mean_over_defined(pairs: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """Mean over classes of pairs [C] / all pairs of the class; NaN when no class has both positives and negatives."""
    possible = positive.sum(-1) * negative.sum(-1)
    defined = possible > 0
    return float(np.mean(pairs[defined] / possible[defined])) if defined.any() else math.nan
