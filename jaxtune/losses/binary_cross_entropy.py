"""A yes-or-no cross-entropy for every label: the loss of multi-label tasks."""

from __future__ import annotations

from typing import Annotated, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.core.errors import ConfigError
from jaxtune.losses.base import Batch, Loss, target_of

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BinaryCrossEntropy(Loss):
    """The mean over labels of -(positive_weight x target x log p + (1 - target) x log(1 - p)), p by the sigmoid of the logit."""

    positive_weight: Weight | tuple[Weight, ...] | None = Field(
        default=None, description="How much a label that is there weighs against one that is not: one number, or one per label."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Targets move by this share towards 0.5.")

    def fit(self, counts: np.ndarray) -> Self:
        self._positive(len(counts))
        return self

    def terms(self, logits: Float[Array, "B C"], batch: Batch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        loss = self._loss(logits, batch, self._positive(logits.shape[-1]))
        return loss, jnp.ones_like(loss)

    def plain(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        return self._loss(logits, batch, np.ones((), np.float32))

    def _loss(self, logits: Float[Array, "B C"], batch: Batch, positive: np.ndarray) -> Float[Array, "B"]:
        target = target_of(self, logits, batch)
        target = target * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        there, absent = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
        return jnp.mean(positive * target * there + (1.0 - target) * absent, -1)

    def _positive(self, labels: int) -> np.ndarray:
        """A scalar, or [1, labels]."""
        if not isinstance(self.positive_weight, tuple):
            return np.asarray(1.0 if self.positive_weight is None else self.positive_weight, np.float32)
        if len(self.positive_weight) != labels:
            raise ConfigError(f"loss.positive_weight has {len(self.positive_weight)} numbers, but there are {labels} labels")
        return np.asarray(self.positive_weight, np.float32)[None]
