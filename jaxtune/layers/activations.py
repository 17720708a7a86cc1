"""Activation functions under their Hugging Face names, with a fast exact GELU for CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxtune.layers.cpu_math import compiled, exp2, narrow, on_cpu, polynomial, widen

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def gelu(x: Float[Array, ...], *, backend: str | None = None) -> Float[Array, ...]:
    """x P(x), with P the normal distribution function (exact, by erf).

    `backend` picks the rule (default: the backend of this process); tests name it.
    """
    return _gelu(x) if on_cpu(backend) else jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, ...]) -> Float[Array, ...]:
    """GELU by the tanh formula of the original paper's code."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Float[Array, ...]) -> Float[Array, ...]:
    """x sigmoid(1.702 x), as in CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


@compiled
def _gelu_forward(x: Array) -> Array:
    values = widen(x)
    return narrow(values * _distribution(values, x.dtype), x.dtype)


@compiled
def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    values = widen(x)
    if x.dtype == jnp.bfloat16:
        slope = 0.5 + _odd(values, _SLOPE, _SLOPE_END)
    else:
        density = exp2(jnp.square(values) * np.float32(-0.5 * np.log2(np.e)), x.dtype)
        slope = _distribution(values, x.dtype) + values * density * np.float32(1 / np.sqrt(2 * np.pi))
    return (narrow(widen(gradient) * slope, x.dtype),)


# The CPU rule keeps x for the backward pass and nothing else.
_gelu = jax.custom_vjp(lambda x: _gelu_forward(x))
_gelu.defvjp(lambda x: (_gelu_forward(x), x), _gelu_backward)


def _distribution(x: Array, dtype: jnp.dtype) -> Array:
    """P(x) for float32 x; for a bfloat16 result a polynomial with an error below 4e-5, a fiftieth of its rounding."""
    if dtype == jnp.bfloat16:
        return 0.5 + _odd(x, _DISTRIBUTION, _DISTRIBUTION_END)
    return 0.5 * (1.0 + lax.erf(x * np.float32(np.sqrt(0.5))))


def _odd(x: Array, coefficients: np.ndarray, end: float) -> Array:
    """x times a polynomial in x^2, constant beyond +-end."""
    x = jnp.clip(x, np.float32(-end), np.float32(end))
    return x * polynomial(x * x, coefficients)


# Fitted by least squares at Chebyshev's points, the largest errors weighted up until even, then scaled to end at 1/2:
# P(x) - 1/2 on [-4, 4], and P(x) - 1/2 + x P'(x) on [-4.5, 4.5] (error below 4e-4).
_DISTRIBUTION_END, _SLOPE_END = 4.0, 4.5
_DISTRIBUTION = np.array(
    [
        *(0.398944018, -0.0664141406, 0.00987800531, -0.00113398293, 9.89134207e-5),
        *(-6.29534239e-6, 2.71630552e-7, -7.00385495e-9, 8.06386877e-11),
    ],
    np.float32,
)
_SLOPE = np.array(
    [
        *(0.797729225, -0.264959928, 0.0586168817, -0.00881700256, 0.000940664751),
        *(-7.1231364e-5, 3.72243303e-6, -1.26822588e-7, 2.52166634e-9, -2.2111117e-11),
    ],
    np.float32,
)
