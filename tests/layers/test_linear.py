"""Dense layers and embeddings: products in the input's dtype, parameters as they are stored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.linear import Embedding, Linear


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_by_its_formula(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(7, 5, bias=bias, deviation=1.0, rngs=nnx.Rngs(0))
    if layer.bias is not None:
        layer.bias[...] = jnp.arange(5.0)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = x @ np.asarray(layer.kernel[...]) + (np.arange(5.0) if bias else 0.0)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)


def test_linear_computes_in_the_inputs_precision() -> None:
    layer = Linear(7, 5, deviation=1.0, rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == jnp.float32
    assert layer(jnp.ones((2, 7), jnp.bfloat16)).dtype == jnp.bfloat16
    gradient = nnx.grad(lambda layer: layer(jnp.ones((2, 7), jnp.bfloat16)).astype(jnp.float32).sum())(layer)
    assert gradient.kernel[...].dtype == jnp.float32 and gradient.bias[...].dtype == jnp.float32


def test_initial_values_depend_on_the_key_and_have_the_deviation() -> None:
    kernels = [np.asarray(Linear(200, 300, deviation=0.05, rngs=nnx.Rngs(seed)).kernel[...]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert 0.04 < kernels[0].std() < 0.05 and np.abs(kernels[0]).max() <= 0.1  # truncated at two deviations


def test_embedding_reads_rows_and_sums_gradients() -> None:
    table = Embedding(5, 3, deviation=1.0, rngs=nnx.Rngs(0))
    rows = np.asarray(table.embedding[...])
    np.testing.assert_array_equal(table(jnp.array([[4, 0], [0, 2]])), rows[np.array([[4, 0], [0, 2]])])
    weight = jnp.arange(1.0, 4.0).reshape(3, 1)
    gradient = nnx.grad(lambda table: (table(jnp.array([1, 3, 3])) * weight).sum())(table)
    np.testing.assert_array_equal(gradient.embedding[...], np.array([[0.0], [1], [0], [5], [0]]) * np.ones((1, 3)))
