"""What a metric is: `start` makes a state, `update` adds one batch on the device, `compute` turns the sums into numbers on the host.

The state holds sums only, so a metric over any number of ragged, padded batches on any number of devices equals the metric
over all examples at once. A row of `loss_weight` 0 is padding and is not there at all; every other row counts once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax

from jaxtune.core.component import Component, load_class, nearest
from jaxtune.core.errors import ConfigError
from jaxtune.metrics import METRICS

State = dict[str, jax.Array]
Numbers = dict[str, float | list[float]]
Better = Literal["max", "min"]

MULTI_LABEL_THRESHOLD = 0.5
"""A label of a multi-label example is predicted when its probability is greater than this."""


class Metric(Component):
    """One metric, or a few that come out of the same sums.

    A batch with `label` i32[B] is single-label (the predicted class is the largest logit); one with only `target` f32[B, C]
    is multi-label or regression, whichever the metric is about.
    """

    higher_is_better: ClassVar[Mapping[str, bool]]  # every single number that `compute` may give; lists have no better
    reads: ClassVar[tuple[str, ...]] = ()  # the predictions that it needs, where not every task has them

    @abstractmethod
    def start(self, classes: int) -> State:
        """A state that has seen nothing; `classes` is the last axis of the logits. May be called inside jit or eval_shape."""

    @abstractmethod
    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        """The state with one batch added. `predictions`: logits f32[B, C], probabilities f32[B, C], loss f32[B]; traced.

        Raises:
            ConfigError: the batch has not what this metric compares with.
        """

    @abstractmethod
    def compute(self, state: State) -> Numbers:
        """The numbers by their full names, on the host; NaN where a number is not defined (no examples, one class only)."""

    @classmethod
    def better(cls, key: str) -> Better:
        """Whether a larger or a smaller `key` is the better one.

        Raises:
            ConfigError: this metric gives no such number.
        """
        if key not in cls.higher_is_better:
            known = ", ".join(cls.higher_is_better)
            raise ConfigError(f'{cls.__name__} gives no number "{key}"{nearest(key, cls.higher_is_better)} (it gives: {known})')
        return "max" if cls.higher_is_better[key] else "min"


def better(key: str) -> Better | None:
    """The better direction of a number of any metric in the table; None when no metric of the table gives it."""
    for where in METRICS.values():
        metric = load_class(where)
        if key in metric.higher_is_better:
            return metric.better(key)
    return None


def counted(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Boolean [B]: the rows that are examples and not padding."""
    return batch["loss_weight"] > 0


def target_of(metric: Metric, batch: Mapping[str, jax.Array]) -> jax.Array:
    """`batch["target"]`.

    Raises:
        ConfigError: the task gives labels, not numbers.
    """
    if "target" not in batch:
        found = ", ".join(sorted(batch))
        name = type(metric).__name__
        raise ConfigError(f'metric {name} compares with the batch\'s "target", which this task does not give (found: {found})')
    return batch["target"]
