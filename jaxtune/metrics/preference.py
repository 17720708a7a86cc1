"""Metrics of pairs: how often, and by how much, the preferred answer is worth more than the other one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtune.metrics.base import Metric, Numbers, State, counted
from jaxtune.metrics.sums import add_sum, count, read_count, read_sum, zero_count, zero_sum


class OverPairs(Metric):
    """A mean over pairs of a number made of both rewards."""

    reads: ClassVar[tuple[str, ...]] = ("reward",)

    def start(self, classes: int) -> State:
        del classes
        return {"total": zero_sum(), "pairs": zero_count()}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        there = counted(batch)
        values = jnp.where(there, self.each(predictions["reward"][:, 0] - predictions["reward"][:, 1]), 0.0)
        return {"total": add_sum(state["total"], jnp.sum(values)), "pairs": state["pairs"] + count(there)}

    @abstractmethod
    def each(self, margin: jax.Array) -> jax.Array:
        """The number of each pair, from the reward of the preferred answer less that of the other."""

    def compute(self, state: State) -> Numbers:
        pairs = int(read_count(state["pairs"]))
        (name,) = self.higher_is_better
        return {name: float(read_sum(state["total"])) / pairs if pairs else math.nan}


class PreferenceAccuracy(OverPairs):
    """`preference_accuracy`: the share of pairs whose preferred answer has the greater reward; equal rewards count half."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"preference_accuracy": True}

    def each(self, margin: jax.Array) -> jax.Array:
        return 0.5 * (1.0 + jnp.sign(margin))


class RewardMargin(OverPairs):
    """`reward_margin`: how much greater the preferred answer's reward is."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"reward_margin": True}

    def each(self, margin: jax.Array) -> jax.Array:
        return margin
