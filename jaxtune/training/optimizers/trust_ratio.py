"""Optimizers that scale an array's update by the norm of the array: Lamb, Lars and Fromage."""

from __future__ import annotations

from typing import ClassVar, Literal

import optax
from pydantic import Field

from jaxtune.training.optimizers.base import Beta, Controls, NotNegative, Number, Optimizer, Positive, WeightDecay


class Lamb(Optimizer):
    """Adam with a trust ratio, for very large batches (You et al. 2020)."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "inside"

    weight_decay: WeightDecay = Field(default=0.01, description="Added to adam's update before the trust ratio is taken.")
    beta1: Beta = Field(default=0.9, description="Share of the old first moment.")
    beta2: Beta = Field(default=0.999, description="Share of the old second moment.")
    epsilon: Positive = Field(default=1e-6, description="Added to the root of the second moment.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.lamb(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"], weight_decay=weight_decay)


class Lars(Optimizer):
    """Momentum with a trust ratio, for very large batches of images (You et al. 2017)."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "inside"

    weight_decay: WeightDecay = Field(default=0.0, description="Added to the gradient before the trust ratio is taken.")
    momentum: Beta = Field(default=0.9, description="Share of the old direction.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")
    trust: Positive = Field(default=1e-3, description="An array moves by at most about rate x trust of its norm.")
    epsilon: NotNegative = Field(default=0.0, description="Added to the gradient's norm.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.lars(
            controls["rate"],
            weight_decay,
            trust_coefficient=controls["trust"],
            eps=controls["epsilon"],
            momentum=controls["momentum"],
            nesterov=self.nesterov,
        )


class Fromage(Optimizer):
    """Fromage (Bernstein et al. 2020): the rate is the relative change of an array per step; 0.01 is a good start."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "none"
    instead_of_decay: ClassVar[str] = "it keeps the norms of the parameters in check itself"

    least_norm: Positive = Field(default=1e-6, description="Norms of parameters and gradients count as at least this.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.fromage(controls["rate"], controls["least_norm"])
