"""Activations against their formulas; the CPU rules against autodiff."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.layers.activations import ACTIVATIONS, gated, gelu, silu

X = np.concatenate([np.linspace(-12, 12, 4801), [-1e4, 1e4]])
ERF = np.vectorize(math.erf)
FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(np.clip(-1.702 * x, None, 700))),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "silu": lambda x: x / (1 + np.exp(np.clip(-x, None, 700))),
    "tanh": np.tanh,
}
SAME = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_is_exact(name):
    expected = FORMULAS[SAME.get(name, name)](X)
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X, jnp.float32)), expected, rtol=1e-5, atol=2e-6)


def test_gelu_gradient_is_exact_in_float32():
    exact = 0.5 * (1 + ERF(X / math.sqrt(2))) + X * np.exp(-0.5 * X**2) / math.sqrt(2 * math.pi)
    x = jnp.asarray(X, jnp.float32)
    for backend in ("cpu", "tpu"):
        slope = jax.vmap(jax.grad(lambda x: gelu(x, backend=backend)))(x)  # noqa: B023
        np.testing.assert_allclose(slope, exact, atol=1e-6)


def test_gelu_in_bfloat16_is_right_to_its_rounding():
    """The CPU rule's error on top of the rounding stays below 1.3e-4, in the slope below 4e-4."""
    x = jnp.asarray(X, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    value = np.asarray(gelu(x, backend="cpu"), np.float64)
    np.testing.assert_allclose(value, FORMULAS["gelu"](wide), rtol=2**-8, atol=2e-4)
    slope = np.asarray(jax.vmap(jax.grad(lambda x: gelu(x, backend="cpu")))(x), np.float64)
    exact = 0.5 * (1 + ERF(wide / math.sqrt(2))) + wide * np.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(slope, exact, rtol=2**-8, atol=5e-4)


def test_gelu_keeps_only_its_input():
    _, pull = jax.vjp(lambda x: gelu(x, backend="cpu"), jnp.ones((4, 8)))
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [(4, 8)]


def test_not_a_number_stays_one():
    for dtype in (jnp.float32, jnp.bfloat16):
        assert bool(jnp.isnan(gelu(jnp.asarray([jnp.nan], dtype), backend="cpu")).all())


def test_silu_gradient_is_exact_in_float32():
    share = 1 / (1 + np.exp(np.clip(-X, None, 700)))
    exact = share * (1 + X * (1 - share))
    for backend in ("cpu", "tpu"):
        slope = jax.vmap(jax.grad(lambda x: silu(x, backend=backend)))(jnp.asarray(X, jnp.float32))  # noqa: B023
        np.testing.assert_allclose(slope, exact, atol=1e-6)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gated_is_a_product_with_the_gradients_of_one(name):
    name = {"gelu_tanh": "gelu_pytorch_tanh"}.get(name, name)
    gate, up, seed = jax.random.normal(jax.random.key(0), (3, 5, 64)) * 3

    def run(backend):
        value, pull = jax.vjp(lambda gate, up: gated(name, gate, up, backend=backend), gate, up)
        return value, *pull(seed)

    plain, pull = jax.vjp(lambda gate, up: ACTIVATIONS[name](gate) * up, gate, up)
    for backend in ("cpu", "tpu"):
        for found, expected in zip(run(backend), (plain, *pull(seed)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-5)  # 1 + tanh cancels in the tail
    _, pull = jax.vjp(lambda gate, up: gated(name, gate, up, backend="cpu"), gate, up)
    assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [gate.shape, up.shape]


def test_gated_in_bfloat16_is_rounded_once():
    gate, up = (jax.random.normal(jax.random.key(0), (2, 5, 64)) * 3).astype(jnp.bfloat16)
    wide = [np.asarray(x, np.float64) for x in (gate, up)]
    found = np.asarray(gated("silu", gate, up, backend="cpu"), np.float64)
    np.testing.assert_allclose(found, FORMULAS["silu"](wide[0]) * wide[1], rtol=2**-8)
