"""Softmax cross-entropy, with label smoothing and class weights."""

from __future__ import annotations

from typing import Annotated

import jax
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.losses.base import Batch
from jaxtune.losses.class_weights import ClassWeightedLoss, distribution, dot


class CrossEntropy(ClassWeightedLoss):
    """-sum over classes of w x target x log p. With labels, the same numbers as PyTorch's CrossEntropyLoss.

    With soft targets the mean's denominator is the sum of w x target, so that a one-hot target gives what its label gives.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="This share of the target is spread evenly over all classes."
    )

    def terms(self, logits: Float[Array, "B C"], batch: Batch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        weights = self.weights(logits.shape[-1])[None]
        target = distribution(self, logits, batch)
        log_p = jax.nn.log_softmax(logits, -1)
        return -dot(weights * self._smooth(target), log_p), (weights * target).sum(-1)

    def plain(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        return -dot(self._smooth(distribution(self, logits, batch)), jax.nn.log_softmax(logits, -1))

    def _smooth(self, target: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return target * (1.0 - self.label_smoothing) + self.label_smoothing / target.shape[-1]
