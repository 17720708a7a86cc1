"""A phase: what trains, for how long, with which optimizer, and when it ends early."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.core.paths import compile_pattern
from jaxtune.training.optimizers import OPTIMIZERS
from jaxtune.training.optimizers.base import Optimizer
from jaxtune.training.stopping import STOP_RULES
from jaxtune.training.stopping.base import StopRule


class Phase(Component):
    """One entry of `phases:`."""

    train: tuple[str, ...] = Field(
        default=("*",), min_length=1, description='parameter patterns that train, e.g. ["head.*", "layers.{4-5}.*"]; "!" takes away'
    )
    epochs: float | None = Field(default=None, gt=0, description="length in passes over the training split")
    steps: int | None = Field(default=None, ge=1, description="length in optimizer steps")
    optimizer: Annotated[Optimizer, OneOf(OPTIMIZERS)] = Field(description="optimizer by kind, with its schedule")
    stopping: tuple[Annotated[StopRule, OneOf(STOP_RULES)], ...] = Field(
        default=(), description="rules that may end the phase or change the rate"
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        description="parts into which a batch is cut to save memory; the result is that of the whole batch (batch statistics see part after part)",
    )
    average: float | None = Field(
        default=None, gt=0, lt=1, description="decay of an exponential moving average of the weights, which is then evaluated"
    )
    skip_limit: int = Field(default=5, ge=1, description="steps in a row with non-finite loss or gradients after which the run stops")

    @model_validator(mode="after")
    def one_length(self) -> Phase:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set exactly one of epochs and steps")
        for pattern in self.train:
            compile_pattern(pattern)
        return self
