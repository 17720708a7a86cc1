"""Lion: only the sign of the update is used."""

from __future__ import annotations

import optax
from pydantic import Field

from jaxtune.training.optimizers.base import Beta, Controls, Number, Optimizer, WeightDecay


class Lion(Optimizer):
    """Lion (Chen et al. 2023); wants a 3 to 10 times smaller rate and as much larger a weight decay than adamw."""

    weight_decay: WeightDecay = 0.1
    beta1: Beta = Field(default=0.9, description="Share of the old momentum in the update.")
    beta2: Beta = Field(default=0.99, description="Share of the old momentum in the new one.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.lion(controls["rate"], controls["beta1"], controls["beta2"], weight_decay=0.0)
