"""The one place where activations meet weight matrices.

Everything passes through `matmul`, so the layout of the two gradient products is chosen once, per backend: XLA on CPU runs
the same sum 4 to 30 times faster or slower by operand layout, while on TPU and GPU autodiff's own choice is right.

Letters: I in, O out; a kernel is always [I, O]. In the CPU rule the leading axes are two, X and Y.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.layers.cpu_math import narrow, on_cpu, stored, sum_rows, widen

_PLANE = 256


def matmul(
    x: Float[Array, "... I"],
    kernel: Float[Array, "I O"],
    dtype: DTypeLike | None = None,
    *,
    bias: Float[Array, " O"] | None = None,
    backend: str | None = None,
) -> Float[Array, "... O"]:
    """x [..., I] times kernel [I, O], plus bias [O] -> [..., O], computed and returned in `dtype` (default: that of x).

    `backend` picks the gradient rule (default: the backend of this process); tests name it.
    """
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    shape = (*x.shape[:-1], kernel.shape[-1])
    if bias is not None:
        bias = bias.astype(dtype)
    if not on_cpu(backend):
        y = x @ kernel
        return y if bias is None else y + bias.reshape((1,) * (len(shape) - 1) + bias.shape)
    y = _product(_planes(x), kernel)
    return (y if bias is None else _add_row(y, bias.reshape((1, 1, -1)))).reshape(shape)


def matmul_sum(
    x: Float[Array, "... I"], kernel: Float[Array, "I O"], low: Float[Array, "... R"], up: Float[Array, "R O"]
) -> Float[Array, "... O"]:
    """x @ kernel + low @ up in x's dtype, summed in float32 and rounded once.

    A product that is rounded before a small one is added swallows it: bfloat16 keeps 8 bits, and what an adapter adds in its first
    steps is often less than the last of them.
    """
    kernel, low, up = (one.astype(x.dtype) for one in (kernel, low, up))
    return _sum(_planes(x), kernel, _planes(low), up).reshape(*x.shape[:-1], kernel.shape[-1])


def _planes(x: Float[Array, "... I"]) -> Float[Array, "X Y I"]:
    """x with two leading axes, because the transpose inside a kernel's gradient takes 4 times longer with one."""
    if x.ndim >= 3:
        return x.reshape((-1, *x.shape[-2:]))
    rows = x.size // x.shape[-1]
    return x.reshape((-1, _PLANE if rows % _PLANE == 0 and rows else rows, x.shape[-1]))


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """x [X, Y, I], kernel [I, O] -> [X, Y, O]."""
    return jnp.einsum("XYI,IO->XYO", x, kernel)


def _saved(x: Any, kernel: Any) -> tuple[Array | None, Array | None]:
    """An operand only where the other one's gradient is asked for: a frozen kernel keeps no activations."""
    return x.value if kernel.perturbed else None, kernel.value if x.perturbed else None


def _backward(saved: tuple[Array | None, Array | None], gradient: Array) -> tuple[Array | None, Array | None]:
    x, kernel = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        return None, None
    to_x = None if kernel is None else jnp.einsum("XYO,IO->XYI", gradient, kernel)
    return to_x, None if x is None else _kernel_gradient(x, gradient)


@jax.custom_vjp
def _sum(x: Array, kernel: Array, low: Array, up: Array) -> Array:
    """x [X, Y, I], kernel [I, O], low [X, Y, R], up [R, O] -> [X, Y, O]."""
    wide = functools.partial(jnp.einsum, "XYI,IO->XYO", preferred_element_type=jnp.float32)
    y = wide(x, kernel) + wide(low, up)
    return narrow(y, x.dtype) if on_cpu() else y.astype(x.dtype)


def _sum_forward(x: Any, kernel: Any, low: Any, up: Any) -> tuple[Array, tuple[Any, ...]]:
    return _sum(x.value, kernel.value, low.value, up.value), (_saved(x, kernel), _saved(low, up))


_sum.defvjp(_sum_forward, lambda saved, gradient: (*_backward(saved[0], gradient), *_backward(saved[1], gradient)), symbolic_zeros=True)


def _kernel_gradient(x: Array, gradient: Array) -> Array:
    """x^T gradient [I, O], by the product that transposes the narrower operand.

    XLA transposes the left operand in memory. For [4096, 1536] and [4096, 384] in bfloat16: 5.2 ms this way, 7.9 ms the other.
    Without the inner `stored` the last transpose would move into the product: 215 ms; without the outer one into the optimizer.
    """
    if x.shape[-1] <= gradient.shape[-1] or not on_cpu():
        return jnp.einsum("XYI,XYO->IO", x, gradient)
    return stored(stored(jnp.einsum("XYO,XYI->OI", gradient, x)).T)


_product.defvjp(lambda x, kernel: (_product(x.value, kernel.value), _saved(x, kernel)), _backward, symbolic_zeros=True)


@jax.custom_vjp
def _add_row(x: Array, row: Array) -> Array:
    """x [X, Y, O] plus row [1, 1, O]."""
    return narrow(widen(x) + widen(row), x.dtype)


_add_row.defvjp(
    lambda x, row: (_add_row(x, row), None),
    lambda _, gradient: (gradient, sum_rows(gradient).astype(gradient.dtype).reshape((1, 1, -1))),
)
