"""Metrics of predicted numbers: squared and absolute error, correlation, explained variance.

Correlation and explained variance are built from centred sums that are merged batch by batch (Chan, Golub and LeVeque 1979):
sums of plain squares lose all digits in float32 as soon as the mean is large against the spread. For the same reason values
are taken relative to the first batch's means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.metrics.base import Metric, Numbers, State, counted, target_of
from jaxtune.metrics.sums import add_sum, count, read_count, read_sum, zero_count, zero_sum


class _MeanError(Metric):
    """The mean over examples and outputs of a function of the error."""

    reads: ClassVar[tuple[str, ...]] = ("logits",)

    def start(self, classes: int) -> State:
        return {"total": zero_sum(), "examples": zero_count()}

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        _, _, error = _pairs(self, predictions, batch)
        each = jnp.mean(self._of(error), -1)
        return {"total": add_sum(state["total"], jnp.sum(each)), "examples": state["examples"] + count(counted(batch))}

    def compute(self, state: State) -> Numbers:
        examples = int(read_count(state["examples"]))
        (name,) = self.higher_is_better
        return {name: float(read_sum(state["total"])) / examples if examples else math.nan}

    def _of(self, error: jax.Array) -> jax.Array:
        raise NotImplementedError


class MeanSquaredError(_MeanError):
    """`mean_squared_error`, over examples and outputs."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"mean_squared_error": False}

    def _of(self, error: jax.Array) -> jax.Array:
        return jnp.square(error)


class MeanAbsoluteError(_MeanError):
    """`mean_absolute_error`, over examples and outputs."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"mean_absolute_error": False}

    def _of(self, error: jax.Array) -> jax.Array:
        return jnp.abs(error)


class _Moments(Metric):
    """Means and centred sums of products of prediction and target, per output."""

    reads: ClassVar[tuple[str, ...]] = ("logits",)

    def start(self, classes: int) -> State:
        return {
            "examples": zero_count(),
            "origin": jnp.zeros((2, classes), jnp.float32),  # prediction, target: the first batch's means
            "mean": jnp.zeros((2, classes), jnp.float32),  # from the origin on
            "spread": zero_sum(3, classes),  # prediction squared, target squared, product; all centred
            "residual": zero_sum(classes),
        }

    def update(self, state: State, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> State:
        predicted, target, error = _pairs(self, predictions, batch)
        rows = counted(batch)[:, None]
        before, new = state["examples"].astype(jnp.float32), count(rows).astype(jnp.float32)
        values = jnp.stack([predicted, target], 1)  # [B, 2, C]
        origin = jnp.where(before > 0, state["origin"], jnp.sum(values, 0) / jnp.maximum(new, 1.0))
        values = jnp.where(rows[:, :, None], values - origin[None], 0.0)
        mean = jnp.sum(values, 0) / jnp.maximum(new, 1.0)
        centred = jnp.where(rows[:, :, None], values - mean[None], 0.0)
        step = mean - state["mean"]
        share = new / jnp.maximum(before + new, 1.0)
        within = _products(centred[:, 0], centred[:, 1]).sum(1)
        between = _products(step[0], step[1]) * (before * share)
        return {
            "examples": state["examples"] + count(rows),
            "origin": origin,
            "mean": state["mean"] + step * share,
            "spread": add_sum(state["spread"], within + between),
            "residual": add_sum(state["residual"], jnp.sum(jnp.square(error), 0)),
        }


class Pearson(_Moments):
    """`pearson`: the correlation of prediction and target, mean over outputs; NaN when one of them does not vary."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"pearson": True}

    def compute(self, state: State) -> Numbers:
        predicted, target, product = read_sum(state["spread"])
        below = np.sqrt(predicted * target)
        each = np.divide(product, below, out=np.full_like(product, np.nan), where=below > 0)
        return {"pearson": float(each.mean())}


class R2(_Moments):
    """`r2`: the share of the target's variance that is explained, mean over outputs.

    For a target that does not vary: 1 when it is met exactly, otherwise 0, as in scikit-learn.
    """

    higher_is_better: ClassVar[Mapping[str, bool]] = {"r2": True}

    def compute(self, state: State) -> Numbers:
        if not read_count(state["examples"]):
            return {"r2": math.nan}
        residual, variance = read_sum(state["residual"]), read_sum(state["spread"])[1]
        constant = np.where(residual == 0, 1.0, 0.0)
        each = np.subtract(1.0, np.divide(residual, variance, out=1.0 - constant, where=variance > 0))
        return {"r2": float(each.mean())}


def _pairs(metric: Metric, predictions: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prediction, target and their difference, float32 [B, C], 0 in padded rows."""
    rows = counted(batch)[:, None]
    target = jnp.where(rows, target_of(metric, batch).astype(jnp.float32), 0.0)
    predicted = jnp.where(rows, predictions["logits"].astype(jnp.float32), 0.0)
    return predicted, target, predicted - target


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    """a a, b b and a b, stacked in front."""
    return jnp.stack([a * a, b * b, a * b])
