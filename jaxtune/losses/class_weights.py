"""Weights per class, shared by the losses over classes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field

from jaxtune.core.errors import ConfigError
from jaxtune.losses.base import Batch, Loss

ClassWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ClassWeightedLoss(Loss):
    """A loss over classes that may weigh them.

    As in PyTorch, the weights stand in the mean's denominator too: sum of w[label] x loss over sum of w[label].
    """

    class_weights: Literal["none", "balanced"] | tuple[ClassWeight, ...] = Field(
        default="none",
        description="none; balanced: examples / (classes x examples of the class), counted on the training split; or one number per class.",
    )

    def fit(self, counts: np.ndarray) -> Self:
        counts = np.asarray(counts, np.float64)
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != len(counts):
            raise ConfigError(f"loss.class_weights has {len(self.class_weights)} numbers, but there are {len(counts)} classes")
        if self.class_weights != "balanced":
            return self
        if np.any(counts == 0):
            missing = ", ".join(str(i) for i in np.flatnonzero(counts == 0))
            raise ConfigError(f"loss.class_weights: balanced needs examples of every class; the training split has none of class {missing}")
        weights = counts.sum() / (len(counts) * counts)
        return self.model_copy(update={"class_weights": tuple(float(w) for w in weights)})

    def weights(self, classes: int) -> Float[Array, "C"]:
        """Raises:
        ConfigError: `balanced` was not fitted, or the numbers are not as many as the classes.
        """
        if self.class_weights == "none":
            return jnp.ones((classes,), jnp.float32)
        if self.class_weights == "balanced":
            raise ConfigError("loss.class_weights: balanced is computed from the training split; call loss = loss.fit(counts) first")
        if len(self.class_weights) != classes:
            raise ConfigError(f"loss.class_weights has {len(self.class_weights)} numbers, but there are {classes} classes")
        return jnp.asarray(self.class_weights, jnp.float32)


def distribution(loss: Loss, logits: Float[Array, "B C"], batch: Batch) -> Float[Array, "B C"]:
    """What the softmax is compared with: soft labels (`target`, as mixup makes them) where there are any, else one-hot labels.

    Raises:
        ConfigError: neither is there, or the shapes do not fit.
    """
    if "target" in batch:
        if batch["target"].shape != logits.shape:
            shapes = f"target has shape {batch['target'].shape}, the logits have {logits.shape}"
            raise ConfigError(f"loss {type(loss).__name__}: {shapes}; expected the same")
        return batch["target"].astype(jnp.float32)
    if "label" not in batch:
        raise ConfigError(f'loss {type(loss).__name__} needs "label" or "target" in the batch (found: {", ".join(sorted(batch))})')
    return jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=jnp.float32)


def dot(target: Float[Array, "B C"], values: Float[Array, "B C"]) -> Float[Array, "B"]:
    """Sum over classes of target x values, where 0 x infinity is 0 (a class that is masked out by a logit of -inf)."""
    return jnp.sum(jnp.where(target != 0, target * values, 0.0), -1)
