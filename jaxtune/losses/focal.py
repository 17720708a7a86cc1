"""Cross-entropy in which well classified examples count less."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.losses.base import Batch
from jaxtune.losses.class_weights import ClassWeightedLoss, distribution, dot


class Focal(ClassWeightedLoss):
    """-sum over classes of w x target x (1 - p) ** gamma x log p (Lin et al. 2017); with gamma 0 the cross-entropy."""

    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=2.0, description="How strongly examples that are right already are discounted."
    )

    def terms(self, logits: Float[Array, "B C"], batch: Batch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        weights = self.weights(logits.shape[-1])[None]
        target = distribution(self, logits, batch)
        return dot(weights * target, self._values(logits, target)), (weights * target).sum(-1)

    def plain(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        target = distribution(self, logits, batch)
        return dot(target, self._values(logits, target))

    def _values(self, logits: Float[Array, "B C"], target: Float[Array, "B C"]) -> Float[Array, "B C"]:
        """-(1 - p) ** gamma x log p, of classes that the target has (a logit of -inf elsewhere would give a NaN gradient).

        The floor keeps the gradient finite where p rounds to 1 and gamma is below 1.
        """
        log_p = jnp.where(target != 0, jax.nn.log_softmax(logits, -1), 0.0)
        miss = jnp.maximum(-jnp.expm1(log_p), 1e-12)
        return -(miss**self.gamma) * log_p
