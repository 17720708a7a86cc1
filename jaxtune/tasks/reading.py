"""What a language model makes of the tokens that it is to predict: shared by all tasks with a vocabulary at every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.layers.dropout import Dropout
from jaxtune.layers.lm_loss import LanguageLoss, lm_loss, log_probabilities, top_log_probabilities


@dataclass(frozen=True)
class Reading:
    """The features of a batch's tokens before the head, each with the token behind it as its target."""

    hidden: Float[Array, "B T D"]
    weights: Float[Array, "V D"]
    head: Mapping[str, Any]  # its bias, soft cap and scale
    targets: Int[Array, "B T"]
    weight: Float[Array, "B T"]  # of the target; the head is applied where it is not 0
    imbalance: Float[Array, ""] | None = None  # of a mixture of experts

    def loss(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> LanguageLoss:
        """The cross-entropy and log-probability of every target."""
        return lm_loss(self.hidden, self.weights, self.targets, self.weight, **self.head, label_smoothing=label_smoothing, z_loss=z_loss)

    def log_probabilities(self, candidates: Int[Array, "B T J"], temperature: float) -> Float[Array, "B T J"]:
        """Of given tokens in the place of the target."""
        return log_probabilities(self.hidden, self.weights, candidates, self.weight, temperature=temperature, **self.head)

    def likeliest(self, count: int, temperature: float, vocabulary: int) -> tuple[Int[Array, "B T J"], Float[Array, "B T J"]]:
        """The likeliest of the first `vocabulary` tokens in the place of the target, and their log-probabilities."""
        weights = self.weights if vocabulary >= len(self.weights) else self.weights[:vocabulary]
        return top_log_probabilities(self.hidden, weights, self.weight, count, temperature=temperature, **self.head)


def read(model: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None = None, *, training: bool = False) -> Reading:
    """Runs the model up to its head."""
    features = model(batch, noise, training)  # type: ignore[operator]
    head: Any = model.head  # type: ignore[attr-defined]
    settings = {"bias": None if head.bias is None else head.bias[...], "soft_cap": head.soft_cap, "scale": head.scale}
    weight = behind(batch["token_weight"]) * batch["loss_weight"][:, None].astype(jnp.float32)
    return Reading(features.tokens, head.weights(model), settings, behind(batch["tokens"]), weight, features.imbalance)


def behind(x: Array) -> Array:
    """[B, T, ...], at each place what stands one further; 0 at the last."""
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1), *[(0, 0)] * (x.ndim - 2)))
