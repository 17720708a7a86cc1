"""Sums that stay exact over long evaluations without 64-bit numbers on the device.

A float32 counter stops counting at 2^24, and a float32 running sum loses about one digit per factor ten of terms. Counts are
therefore uint32 (exact to 4.29e9 examples), and running sums carry their rounding error along (Knuth, The Art of Computer
Programming vol. 2, 4.2.2: the error of a float addition is itself a float).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

COUNT = jnp.uint32


def zero_count(*shape: int) -> UInt32[Array, "..."]:
    return jnp.zeros(shape, COUNT)


def count(mask: Bool[Array, "..."], axis: int | None = None) -> UInt32[Array, "..."]:
    """How many are true."""
    return jnp.sum(mask, axis=axis, dtype=COUNT)


def zero_sum(*shape: int) -> Float[Array, "2 ..."]:
    """A running sum of zeros: row 0 the sum, row 1 what rounding took away from it."""
    return jnp.zeros((2, *shape), jnp.float32)


def add_sum(running: Float[Array, "2 ..."], value: Float[Array, "..."]) -> Float[Array, "2 ..."]:
    """The running sum with `value` added, rounding error kept."""
    total, lost = running[0], running[1]
    new = total + value
    grown = new - total
    error = (total - (new - grown)) + (value - grown)
    return jnp.stack([new, lost + error])


def read_sum(running: jax.Array) -> np.ndarray:
    """float64 on the host."""
    rows = np.asarray(running, np.float64)
    return rows[0] + rows[1]


def read_count(counts: jax.Array) -> np.ndarray:
    """int64 on the host."""
    return np.asarray(counts, np.int64)
