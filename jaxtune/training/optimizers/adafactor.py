"""Adafactor: the second moment of a matrix as a row and a column, so that the state is small."""

from __future__ import annotations

import optax
from pydantic import Field

from jaxtune.training.optimizers.base import Beta, Controls, Number, Optimizer, Positive


class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern 2018) with the rate from the schedule."""

    relative: bool = Field(default=True, description="The rate is a share of the array's root mean square, not an absolute step.")
    factored: bool = Field(default=True, description="Keep rows and columns only, for arrays whose two largest axes reach least_axis.")
    least_axis: int = Field(default=128, ge=1, description="Shorter axes are not factored.")
    decay_exponent: Positive = Field(default=0.8, description="The second moment's memory: 1 - step ** -exponent of the old one is kept.")
    clip_update: Positive | None = Field(
        default=1.0, description="Largest root mean square of an array's update, before the rate; null: any."
    )
    momentum: Beta | None = Field(default=None, description="Share of the old update; null: none is kept, which saves the memory.")
    epsilon: Positive = Field(default=1e-30, description="Added to the squared gradient.")

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        return optax.adafactor(
            controls["rate"],
            min_dim_size_to_factor=self.least_axis,
            decay_rate=controls["decay_exponent"],
            multiply_by_parameter_scale=self.relative,
            clipping_threshold=None if self.clip_update is None else controls["clip_update"],
            momentum=None if self.momentum is None else controls["momentum"],
            eps=controls["epsilon"],
            factored=self.factored,
        )
