"""Layer normalisation against autodiff, batch normalisation against PyTorch's definitions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.norm import BatchNorm, LayerNorm, RmsNorm, layer_norm, rms_norm


@partial(jax.jit, static_argnums=3)
def _run(x, scale, bias, backend):
    y, pull = jax.vjp(lambda *a: layer_norm(*a, 1e-6, backend=backend), x, scale, bias)
    return y, *pull(jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape).astype(jnp.bfloat16).astype(x.dtype))


@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 5, 16), (2, 3, 4, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_autodiff(shape, with_bias):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), shape)
    scale, bias = jax.random.normal(jax.random.key(1), (2, 16))
    fast, plain = (_run(x, scale, bias if with_bias else None, backend) for backend in ("cpu", "tpu"))
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6)


def test_bfloat16_has_float32_statistics():
    """A mean that bfloat16 cannot hold beside the deviation."""
    x = (100 + jax.random.normal(jax.random.key(0), (4, 8, 64))).astype(jnp.bfloat16)
    scale, bias = jnp.ones(64), jnp.zeros(64)
    exact = _run(x.astype(jnp.float32), scale, bias, "tpu")
    for found in (_run(x, scale, bias, "cpu"), _run(x, scale, bias, "tpu")):
        assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * float(jnp.abs(b).max()))


def test_layer_norm_module():
    module = LayerNorm(8, epsilon=1e-5, rngs=nnx.Rngs(0))
    plain = LayerNorm(8, epsilon=1e-5, bias=False, rngs=nnx.Rngs(0))
    assert plain.bias is None and module.bias is not None and module.scale[...].dtype == jnp.float32
    x = jax.random.normal(jax.random.key(0), (2, 8))
    np.testing.assert_array_equal(module(x), plain(x))


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(16,), (3, 16), (2, 5, 16), (2, 3, 4, 16)])
def test_rms_norm_and_its_gradients_are_those_of_the_formula(shape, offset):
    x, scale = jax.random.normal(jax.random.key(0), shape) * 3, jax.random.normal(jax.random.key(1), (16,))

    def formula(x, scale):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (offset + scale.reshape((1,) * (x.ndim - 1) + (16,)))

    expected, pull = jax.vjp(formula, x, scale)
    for backend in ("cpu", "tpu"):
        found, back = jax.vjp(partial(rms_norm, epsilon=1e-6, offset=offset, backend=backend), x, scale)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(back(jnp.cos(expected)), pull(jnp.cos(expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_rms_norm_starts_as_the_identity_on_unit_rows():
    x = jnp.array([[1.0, -1.0, 1.0, 1.0]])
    for offset in (0.0, 1.0):
        np.testing.assert_allclose(RmsNorm(4, epsilon=0.0, offset=offset, rngs=nnx.Rngs(0))(x), x, rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), jnp.ones(4), 1e-6).dtype == jnp.bfloat16


def _images() -> jax.Array:
    return 2 + jax.random.normal(jax.random.key(0), (6, 3, 3, 4))


def test_batch_norm_normalises_by_the_biased_and_keeps_the_unbiased_variance():
    module = BatchNorm(4, epsilon=1e-5, momentum=0.1, rngs=nnx.Rngs(0))
    x = _images()
    y = module(x, training=True)
    rows = np.asarray(x, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(y.reshape(-1, 4), (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(module.mean[...], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(module.var[...], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


def test_batch_norm_evaluates_with_the_running_statistics():
    module = BatchNorm(4, epsilon=1e-5, momentum=0.1, rngs=nnx.Rngs(0))
    module.mean[...], module.var[...] = jnp.arange(4.0), jnp.arange(1.0, 5.0)
    y = module(_images(), training=False)
    expected = (np.asarray(_images()) - np.arange(4.0)) / np.sqrt(np.arange(1.0, 5.0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module.mean[...], jnp.arange(4.0))


def test_batch_norm_ignores_examples_without_weight():
    x = _images()
    short, padded = (BatchNorm(4, epsilon=1e-5, momentum=0.1, rngs=nnx.Rngs(0)) for _ in range(2))
    expected = short(x[:4], training=True)
    y = padded(x.at[4:].set(1e3), training=True, weight=jnp.array([1.0, 1, 1, 1, 0, 0]))
    np.testing.assert_allclose(y[:4], expected, rtol=1e-5, atol=1e-6)
    for a, b in ((padded.mean, short.mean), (padded.var, short.var)):
        np.testing.assert_allclose(a[...], b[...], rtol=1e-5)


def test_batch_norm_of_an_empty_batch_moves_nothing():
    module = BatchNorm(4, epsilon=1e-5, momentum=0.1, rngs=nnx.Rngs(0))
    module(_images(), training=True, weight=jnp.zeros(6))
    np.testing.assert_array_equal(module.mean[...], jnp.zeros(4))
    np.testing.assert_array_equal(module.var[...], jnp.ones(4))


def test_batch_norm_in_bfloat16_computes_in_float32():
    module = BatchNorm(4, epsilon=1e-5, momentum=0.1, rngs=nnx.Rngs(0))
    y = module(_images().astype(jnp.bfloat16), training=True)
    assert y.dtype == jnp.bfloat16 and module.mean[...].dtype == jnp.float32
