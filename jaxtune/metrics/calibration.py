"""How far the model's confidence is from how often it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from jaxtune.metrics.base import Metric, Numbers, State, counted, target_of
from jaxtune.metrics.sums import add_sum, count, read_count, read_sum, zero_count, zero_sum


class ExpectedCalibrationError(Metric):
    """`expected_calibration_error`: the mean distance of confidence and accuracy over equal bins of confidence (Guo et al. 2017).

    Single-label: the confidence is the largest probability. Multi-label: every label's probability against whether it is there.
    """

    reads: ClassVar[tuple[str, ...]] = ("probabilities",)
    higher_is_better: ClassVar[Mapping[str, bool]] = {"expected_calibration_error": False}

    bins: int = Field(default=15, ge=2, description="Equal intervals of confidence between 0 and 1.")

    def start(self, classes: int) -> State:
        return {"count": zero_count(self.bins), "right": zero_count(self.bins), "confidence": zero_sum(self.bins)}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        probabilities = predictions["probabilities"].astype(jnp.float32)
        rows = counted(batch)
        if "label" in batch:
            confidence = jnp.max(probabilities, -1)
            right = jnp.argmax(probabilities, -1) == batch["label"]
        else:
            rows = jnp.broadcast_to(rows[:, None], probabilities.shape).reshape(-1)
            confidence = probabilities.reshape(-1)
            right = (target_of(self, batch) > 0.5).reshape(-1)
        cell = jnp.clip(jnp.ceil(confidence * self.bins).astype(jnp.int32) - 1, 0, self.bins - 1)
        member = jax.nn.one_hot(cell, self.bins, dtype=bool) & rows[:, None]
        return {
            "count": state["count"] + count(member, 0),
            "right": state["right"] + count(member & right[:, None], 0),
            "confidence": add_sum(state["confidence"], jnp.sum(jnp.where(member, confidence[:, None], 0.0), 0)),
        }

    def compute(self, state: State) -> Numbers:
        total = int(read_count(state["count"]).sum())
        gaps = np.abs(read_count(state["right"]) - read_sum(state["confidence"]))
        return {"expected_calibration_error": float(gaps.sum()) / total if total else math.nan}
