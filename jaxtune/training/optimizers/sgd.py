"""Gradient descent with momentum."""

from __future__ import annotations

from typing import Self

import optax
from pydantic import Field, model_validator

from jaxtune.training.optimizers.base import Beta, Controls, Number, Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent; weight decay is decoupled, not added to the gradient as in PyTorch's SGD."""

    momentum: Beta | None = Field(default=0.9, description="Share of the old direction; null: none is kept.")
    nesterov: bool = Field(default=False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and self.momentum is None:
            raise ValueError("nesterov without momentum has no effect; set momentum or leave nesterov out")
        return self

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.sgd(controls["rate"], None if self.momentum is None else controls["momentum"], self.nesterov)
