"""Components of a user's own, as `kind: tiny_parts:Stumbling`: a loss that is not finite now and then, texts that arrive slowly."""

from __future__ import annotations

import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from pydantic import Field

from jaxtune.core.weighted import Weighted
from jaxtune.data.transforms.augment import RandomDeletion
from jaxtune.losses.base import Batch
from jaxtune.losses.cross_entropy import CrossEntropy


class Stumbling(CrossEntropy):
    """Not a number for every batch that holds one certain example, so that its step is skipped."""

    example: int = Field(description="its number")

    def __call__(self, logits: Any, batch: Batch) -> Weighted:
        found = super().__call__(logits, batch)
        return Weighted(jnp.where((batch["example_id"] == self.example).any(), jnp.nan, found.total), found.weight)


class SlowDeletion(RandomDeletion):
    """Random deletion that takes its time: steps long enough to be hit by a signal."""

    seconds: float = Field(default=0.0, ge=0, description="per example")

    def __call__(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        time.sleep(self.seconds)
        return super().__call__(row, random)
