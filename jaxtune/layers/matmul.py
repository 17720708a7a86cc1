"""The one place where activations meet weight matrices.

Everything passes through `matmul`, so the layout of the two gradient products is chosen once, per backend: XLA on CPU runs
the same sum 4 to 30 times faster or slower by operand layout, while on TPU and GPU autodiff's own choice is right.

Letters: I in, O out; a kernel is always [I, O].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def matmul(
    x: Float[Array, "... I"],
    kernel: Float[Array, "I O"],
    dtype: DTypeLike | None = None,
    *,
    backend: str | None = None,
) -> Float[Array, "... O"]:
    """x [..., I] times kernel [I, O] -> [..., O], computed and returned in `dtype` (default: that of x).

    `backend` picks the gradient rule (default: the backend of this process); tests name it.
    """
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if (backend or jax.default_backend()) != "cpu":
        return x @ kernel
    rows = x.reshape((1, -1, x.shape[-1])) if x.ndim != 3 else x
    return _product(rows, kernel).reshape((*x.shape[:-1], kernel.shape[-1]))


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """x [B, S, I], kernel [I, O] -> [B, S, O]."""
    return jnp.einsum("BSI,IO->BSO", x, kernel)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return jnp.einsum("BSO,IO->BSI", gradient, kernel), jnp.einsum("BSI,BSO->IO", x, gradient)


_product.defvjp(_forward, _backward)
