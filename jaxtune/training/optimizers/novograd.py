"""NovoGrad: the second moment is one number per array."""

from __future__ import annotations

from typing import ClassVar, Literal

import optax
from pydantic import Field

from jaxtune.training.optimizers.base import Beta, Controls, Number, Optimizer, Positive, WeightDecay


class NovoGrad(Optimizer):
    """NovoGrad (Ginsburg et al. 2019): gradients are divided by a running norm of their array."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "inside"

    weight_decay: WeightDecay = Field(default=0.0, description="Added to the scaled gradient, so it goes through the momentum.")
    beta1: Beta = Field(default=0.9, description="Share of the old direction.")
    beta2: Beta = Field(default=0.25, description="Share of the old squared norm.")
    epsilon: Positive = Field(default=1e-6, description="Added to the norm.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.novograd(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"], weight_decay=weight_decay)
