"""The mean loss over the evaluated examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxtune.metrics.base import Metric, Numbers, State, counted
from jaxtune.metrics.sums import add_sum, read_sum, zero_sum


class MeanLoss(Metric):
    """`loss`: the mean of the per-example losses, weighted by `loss_weight`; class weights of the training loss play no part."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"loss": False}

    def start(self, classes: int) -> State:
        return {"total": zero_sum(), "weight": zero_sum()}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        weight = batch["loss_weight"].astype(jnp.float32)
        loss = jnp.where(counted(batch), predictions["loss"].astype(jnp.float32), 0.0)
        return {"total": add_sum(state["total"], jnp.sum(loss * weight)), "weight": add_sum(state["weight"], jnp.sum(weight))}

    def compute(self, state: State) -> Numbers:
        weight = float(read_sum(state["weight"]))
        return {"loss": float(read_sum(state["total"])) / weight if weight else math.nan}
