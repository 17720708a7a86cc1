"""Pooling over channels-last images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def max_pool(x: Float[Array, "B Y X C"], *, size: int, stride: int) -> Float[Array, "B y x C"]:
    """Greatest value of each window; the border is padded by size // 2 on both sides and never wins."""
    pad = size // 2
    return jax.lax.reduce_window(
        x,
        np.asarray(-np.inf, x.dtype),
        jax.lax.max,
        (1, size, size, 1),
        (1, stride, stride, 1),
        ((0, 0), (pad, pad), (pad, pad), (0, 0)),
    )


def mean_pool(x: Float[Array, "B Y X C"]) -> Float[Array, "B C"]:
    """Mean over the image, summed in float32."""
    return x.astype(jnp.float32).mean((1, 2)).astype(x.dtype)
