"""Adam and its close family: first and second moments of the gradient, element by element."""

from __future__ import annotations

from typing import ClassVar, Literal

import optax
from pydantic import Field

from jaxtune.training.optimizers.base import Beta, Controls, NotNegative, Number, Optimizer, Positive, WeightDecay


class Moments(Optimizer):
    """The settings they share."""

    beta1: Beta = Field(default=0.9, description="Share of the old first moment.")
    beta2: Beta = Field(default=0.999, description="Share of the old second moment.")
    epsilon: Positive = Field(default=1e-8, description="Added to the root of the second moment.")


class Adam(Moments):
    """Adam (Kingma and Ba 2015), without weight decay."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "none"
    instead_of_decay: ClassVar[str] = "adam with decoupled decay is `kind: adamw`"

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.adam(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"])


class AdamW(Moments):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: WeightDecay = 0.01

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.adam(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"])


class NAdamW(Moments):
    """AdamW with Nesterov momentum (Dozat 2016)."""

    weight_decay: WeightDecay = 0.01

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.nadam(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"])


class RAdam(Moments):
    """Adam that holds back until its second moment is reliable (Liu et al. 2020), a warm-up of its own."""

    threshold: Positive = Field(default=5.0, description="How long the effective average must be before the second moment is used.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.radam(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"], threshold=controls["threshold"])


class AdaBelief(Moments):
    """Adam with the variance around the first moment in place of the second moment (Zhuang et al. 2020)."""

    epsilon: Positive = Field(default=1e-16, description="Added to the variance's root.")
    epsilon_root: NotNegative = Field(default=1e-16, description="Added to the variance itself.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.adabelief(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"], controls["epsilon_root"])


class Yogi(Moments):
    """Adam whose second moment grows additively (Zaheer et al. 2018)."""

    epsilon: Positive = Field(default=1e-3, description="Added to the root of the second moment.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.yogi(controls["rate"], controls["beta1"], controls["beta2"], controls["epsilon"])
