"""Counts per class that accuracy, F1 and Matthews all come from.

O(classes) memory: how often a class was predicted, was right to be predicted, and was there. That is enough for all three,
for single-label and multi-label alike, so no [classes, classes] matrix is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxtune.metrics.base import MULTI_LABEL_THRESHOLD, Metric, State, counted, target_of
from jaxtune.metrics.sums import count, read_count, zero_count


@dataclass(frozen=True)
class Counts:
    """The sums on the host, int64."""

    examples: int
    exact: int  # examples whose whole prediction is right
    hits: np.ndarray  # [C] predicted and there
    predicted: np.ndarray  # [C]
    support: np.ndarray  # [C]
    multi_label: bool


class CountingMetric(Metric):
    """A metric that is a function of `Counts`; subclasses give `compute`."""

    reads: ClassVar[tuple[str, ...]] = ("logits", "probabilities")

    def start(self, classes: int) -> State:
        return {
            "examples": zero_count(),
            "exact": zero_count(),
            "hits": zero_count(classes),
            "predicted": zero_count(classes),
            "support": zero_count(classes),
            "multi_label": jnp.zeros((), bool),
        }

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        multi_label = "label" not in batch
        if multi_label:
            there = target_of(self, batch) > 0.5
            picked = predictions["probabilities"] > MULTI_LABEL_THRESHOLD
        else:
            classes = predictions["logits"].shape[-1]
            there = jax.nn.one_hot(batch["label"], classes, dtype=bool)
            picked = jax.nn.one_hot(jnp.argmax(predictions["logits"], -1), classes, dtype=bool)
        rows = counted(batch)
        there, picked = there & rows[:, None], picked & rows[:, None]
        return {
            "examples": state["examples"] + count(rows),
            "exact": state["exact"] + count(rows & jnp.all(there == picked, -1)),
            "hits": state["hits"] + count(there & picked, 0),
            "predicted": state["predicted"] + count(picked, 0),
            "support": state["support"] + count(there, 0),
            "multi_label": state["multi_label"] | multi_label,
        }

    @staticmethod
    def read(state: State) -> Counts:
        return Counts(
            examples=int(read_count(state["examples"])),
            exact=int(read_count(state["exact"])),
            hits=read_count(state["hits"]),
            predicted=read_count(state["predicted"]),
            support=read_count(state["support"]),
            multi_label=bool(np.asarray(state["multi_label"])),
        )


def ratio(above: ArrayLike, below: ArrayLike) -> np.ndarray:
    """above / below in float64, 0 where below is 0."""
    top, bottom = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.divide(top, bottom, out=np.zeros(np.broadcast_shapes(top.shape, bottom.shape)), where=bottom != 0)
