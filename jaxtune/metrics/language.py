"""Metrics of language models, over target tokens: every token counts by its weight, whatever example it stands in."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtune.metrics.base import Metric, Numbers, State, counted
from jaxtune.metrics.sums import add_sum, read_sum, zero_sum


class OverTokens(Metric):
    """A mean over target tokens of a number that the task sums up per example."""

    reads: ClassVar[tuple[str, ...]] = ("total_loss", "right_tokens", "tokens")
    total: ClassVar[str]  # the key of `predictions` with an example's sum

    def start(self, classes: int) -> State:
        del classes
        return {"total": zero_sum(), "tokens": zero_sum()}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        there = counted(batch)
        total, tokens = (jnp.sum(jnp.where(there, predictions[name], 0.0)) for name in (self.total, "tokens"))
        return {"total": add_sum(state["total"], total), "tokens": add_sum(state["tokens"], tokens)}

    def compute(self, state: State) -> Numbers:
        tokens = float(read_sum(state["tokens"]))
        return self.numbers(float(read_sum(state["total"])) / tokens if tokens else math.nan)

    @abstractmethod
    def numbers(self, mean: float) -> Numbers:
        """The metric of the mean over tokens."""


class Perplexity(OverTokens):
    """`perplexity`: e to the mean loss of a target token; infinite where that is above what a number can hold."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"perplexity": False}
    total: ClassVar[str] = "total_loss"

    def numbers(self, mean: float) -> Numbers:
        return {"perplexity": math.exp(mean) if not mean > 700 else math.inf}


class TokenAccuracy(OverTokens):
    """`token_accuracy`: the share of target tokens that the model holds likeliest, given all tokens before them."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"token_accuracy": True}
    total: ClassVar[str] = "right_tokens"

    def numbers(self, mean: float) -> Numbers:
        return {"token_accuracy": mean}
