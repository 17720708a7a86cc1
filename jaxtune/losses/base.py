"""What a loss is: a sum over examples with its weight, in float32. The mean is formed once, by whoever has all the sums."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError
from jaxtune.core.weighted import Weighted

Batch = Mapping[str, jax.Array]


class Loss(Component):
    """A loss of logits f32[B, C] against the batch's `label` i32[B] or `target` f32[B, C].

    Rows of `loss_weight` 0 have no part in it, whatever their logits are, NaN included, nor in its gradient.
    """

    @abstractmethod
    def terms(self, logits: Float[Array, "B C"], batch: Batch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """(loss, weight) of each example as training weighs it, before `loss_weight`; every row is finite here."""

    @abstractmethod
    def plain(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        """The loss of each example without class weights; every row is finite here."""

    def __call__(self, logits: Float[Array, "B C"], batch: Batch) -> Weighted:
        """The sum over the batch and its weight.

        Raises:
            ConfigError: label or target is missing or does not fit the logits.
        """
        weight = batch["loss_weight"].astype(jnp.float32)
        total, share = self.terms(*_without_padding(logits, batch))
        return Weighted(jnp.sum(weight * total), jnp.sum(weight * share))

    def each(self, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B"]:
        """The loss of each example, unweighted: what evaluation records. 0 for padding."""
        return jnp.where(batch["loss_weight"] > 0, self.plain(*_without_padding(logits, batch)), 0.0)

    def fit(self, counts: np.ndarray) -> Self:
        """The loss for a training split with `counts` [C] examples per class: `balanced` becomes numbers.

        Raises:
            ConfigError: a setting does not fit that many classes.
        """
        return self


def _without_padding(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits (as float32) and targets with padded rows set to 0 before anything is computed.

    Zeroing the losses instead would not do: the gradient of a NaN row is 0 x NaN.
    """
    there = batch["loss_weight"] > 0
    clean = dict(batch)
    for name in ("label", "target"):
        if name in batch:
            value = batch[name]
            clean[name] = jnp.where(there.reshape(there.shape + (1,) * (value.ndim - 1)), value, jnp.zeros((), value.dtype))
    return jnp.where(there[:, None], logits.astype(jnp.float32), 0.0), clean


def target_of(loss: Loss, logits: jax.Array, batch: Batch) -> jax.Array:
    """`batch["target"]` in float32, of the shape of the logits.

    Raises:
        ConfigError: there is none, or its shape is another.
    """
    name = type(loss).__name__
    if "target" not in batch:
        found = ", ".join(sorted(batch))
        raise ConfigError(f'loss {name} compares with the batch\'s "target", which this task does not give (found: {found})')
    if batch["target"].shape != logits.shape:
        raise ConfigError(f"loss {name}: target has shape {batch['target'].shape}, the logits have {logits.shape}; expected the same")
    return batch["target"].astype(jnp.float32)
