"""Sums with their weights. A mean is formed once, at the end, so padding, packing, accumulation, ragged last batches and many hosts are right by construction."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """`total` is a sum over examples (or tokens), `weight` the weight it was taken over; both float32 scalars."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weight: jax.Array) -> Weighted:
        """Sum of `values` [...] times `weight` [...] (broadcast against each other), in float32.

        Entries of weight 0 are left out even where the value is not finite.
        """
        weight = jnp.broadcast_to(weight.astype(jnp.float32), values.shape)
        values = jnp.where(weight > 0, values.astype(jnp.float32), 0.0)
        return cls(jnp.sum(values * weight), jnp.sum(weight))

    @classmethod
    def zero(cls) -> Weighted:
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def __add__(self, other: Weighted) -> Weighted:
        return Weighted(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> jax.Array:
        """total / weight; 0 where nothing was weighed."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), 0.0)
