"""Losses of predicted numbers: the mean over outputs of a function of the error."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.losses.base import Batch, Loss, target_of


class RegressionLoss(Loss):
    """Subclasses give the function."""

    @abstractmethod
    def of(self, error: Float[Array, "B C"]) -> Float[Array, "B C"]:
        """The loss of each error."""

    def terms(self, logits: Float[Array, "B C"], batch: Batch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        loss = self.plain(logits, batch)
        return loss, jnp.ones_like(loss)

    def plain(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        return jnp.mean(self.of(logits - target_of(self, logits, batch)), -1)


class MeanSquaredError(RegressionLoss):
    """error squared."""

    def of(self, error: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return jnp.square(error)


class MeanAbsoluteError(RegressionLoss):
    """|error|."""

    def of(self, error: Float[Array, "B C"]) -> Float[Array, "B C"]:
        return jnp.abs(error)


class Huber(RegressionLoss):
    """Half the squared error up to `delta`, a straight line of slope delta beyond (Huber 1964)."""

    delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(default=1.0, description="Where the square ends and the line begins.")

    def of(self, error: Float[Array, "B C"]) -> Float[Array, "B C"]:
        size = jnp.abs(error)
        inner = jnp.minimum(size, self.delta)
        return 0.5 * jnp.square(inner) + self.delta * (size - inner)
