"""Optimizers that divide by a running size of the gradient: RMSProp forgets, Adagrad sums up."""

from __future__ import annotations

from typing import ClassVar, Self

import optax
from pydantic import Field, model_validator

from jaxtune.training.optimizers.base import Beta, Controls, NotNegative, Number, Optimizer, Positive


class RMSProp(Optimizer):
    """RMSProp (Tieleman and Hinton 2012); epsilon stands inside the root."""

    decay_rate: Beta = Field(default=0.9, description="Share of the old mean square.")
    epsilon: Positive = Field(default=1e-8, description="Added to the mean square, inside the root.")
    centered: bool = Field(default=False, description="Take the squared mean off: the variance in place of the mean square.")
    momentum: Beta | None = Field(default=None, description="Share of the old direction; null: none is kept.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and self.momentum is None:
            raise ValueError("nesterov without momentum has no effect; set momentum or leave nesterov out")
        return self

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.rmsprop(
            controls["rate"],
            controls["decay_rate"],
            controls["epsilon"],
            centered=self.centered,
            momentum=None if self.momentum is None else controls["momentum"],
            nesterov=self.nesterov,
        )


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011): the rate of an element falls with all it has seen."""

    fixed: ClassVar[frozenset[str]] = Optimizer.fixed | {"initial_sum"}  # a number of the first state, not of the step

    initial_sum: NotNegative = Field(default=0.1, description="Where the sums of squares start.")
    epsilon: Positive = Field(default=1e-7, description="Added to the sum, inside the root.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.adagrad(controls["rate"], self.initial_sum, controls["epsilon"])
