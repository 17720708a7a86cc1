"""Activation functions under their Hugging Face names, with rules of their own for CPU where they are most of a layer's elementwise work."""

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


def silu(x: Float[Array, ...], *, backend: str | None = None) -> Float[Array, ...]:
    """x sigmoid(x), also called swish. `backend` as for `gelu`."""
    return _silu(x) if on_cpu(backend) else jax.nn.silu(x)


ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "silu": silu,
    "swish": silu,
    "tanh": jnp.tanh,
}


def gated(name: str, gate: Float[Array, ...], up: Float[Array, ...], *, backend: str | None = None) -> Float[Array, ...]:
    """ACTIVATIONS[name](gate) times up. On CPU one pass in float32, which keeps gate and up for the backward pass and nothing else."""
    return _gated(name, gate, up) if on_cpu(backend) else ACTIVATIONS[name](gate) * up


@compiled
def _silu_backward(x: Array, gradient: Array) -> tuple[Array]:
    """The gradient of x sigmoid(x)."""
    values = widen(x)
    share = _sigmoid(values, x.dtype)
    return (narrow(widen(gradient) * share * (1.0 + values * (1.0 - share)), x.dtype),)


@compiled
def _silu_forward(x: Array) -> Array:
    values = widen(x)
    return narrow(values * _sigmoid(values, x.dtype), x.dtype)


def _sigmoid(x: Array, dtype: jnp.dtype) -> Array:
    """For float32 x and a result in `dtype`."""
    return 1.0 / (1.0 + exp2(jnp.minimum(x * np.float32(-np.log2(np.e)), np.float32(126.0)), dtype))


_silu = jax.custom_vjp(lambda x: _silu_forward(x))
_silu.defvjp(lambda x: (_silu_forward(x), x), _silu_backward)


def _gated_forward(name: str, gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return narrow(ACTIVATIONS[name](widen(gate)) * widen(up), gate.dtype), (gate, up)


def _gated_backward(name: str, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    gate, up = saved
    activated, pull = jax.vjp(ACTIVATIONS[name], widen(gate))
    gradient = widen(gradient)
    (to_gate,) = pull(gradient * widen(up))
    return narrow(to_gate, gate.dtype), narrow(gradient * activated, up.dtype)


_gated_compiled = compiled(_gated_forward, static=(0,))
_gated = jax.custom_vjp(lambda *arguments: _gated_compiled(*arguments)[0], nondiff_argnums=(0,))
_gated.defvjp(_gated_compiled, compiled(_gated_backward, static=(0,)))


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
