"""Learning from another model's probabilities beside the text itself (distillation, arXiv 1503.02531).

The teacher reads the training rows once, before training; what it holds likeliest is kept with the examples (`jaxtune/teacher.py`), so
that a step costs no pass of it and its memory is free again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.core.component import Component
from jaxtune.tasks.reading import Reading, behind

TOKENS, LOG_PROBABILITY = "teacher_tokens", "teacher_log_probability"  # keys of a batch
LEAST = 1e-7  # that is left for all other tokens together


class Teacher(Component):
    """The `teacher:` section of a task."""

    base: str = Field(description="the teacher: hub id, folder or package:// address of a model with the same tokenizer")
    top_k: int = Field(default=32, ge=1, description="how many of its likeliest tokens are kept of each position; the others count as one")
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="divides the logits of both models; higher: less likely tokens count more"
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the teacher in the loss; the text itself has the rest"
    )

    def distance(self, reading: Reading, batch: Mapping[str, jax.Array]) -> Float[Array, "B T"]:
        """temperature^2 KL(teacher | model) at each position with a loss, over the kept tokens and, as one, all others; 0 elsewhere.

        The square keeps the gradient's size whatever the temperature (section 2 of the paper).
        """
        tokens, theirs = behind(batch[TOKENS]), behind(batch[LOG_PROBABILITY])
        ours = reading.log_probabilities(tokens, self.temperature)
        distance = jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)
        if tokens.shape[-1] < len(reading.weights):
            rest, left = others(theirs), others(ours)
            distance += rest * (jnp.log(rest) - jnp.log(left))
        return jnp.where(reading.weight != 0, self.temperature**2 * distance, 0.0)


def others(log_probability: Float[Array, "B T J"]) -> Float[Array, "B T"]:
    """The probability of all tokens that are not among the kept ones."""
    return jnp.maximum(1.0 - jnp.sum(jnp.exp(log_probability), -1), LEAST)
