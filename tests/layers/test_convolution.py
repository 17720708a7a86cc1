"""Convolutions and pooling by their definition: padding on both sides, channels last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.convolution import Convolution
from jaxtune.layers.pooling import max_pool, mean_pool


def windows(x: np.ndarray, size: int, stride: int, fill: float) -> np.ndarray:
    """[B, Y, X, C] -> [B, y, x, size, size, C], padded by size // 2 on both sides."""
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return view[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("image", [(8, 8), (9, 6)])
def test_convolution_by_its_definition(size: int, stride: int, image: tuple[int, int]) -> None:
    layer = Convolution(3, 5, size=size, stride=stride, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, *image, 3)).astype(np.float32)
    expected = np.einsum("byxuvi,uvio->byxo", windows(x, size, stride, 0.0), np.asarray(layer.kernel[...]))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_gradients_by_the_definition(size: int) -> None:
    layer = Convolution(3, 5, size=size, stride=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)
    gradient = nnx.grad(lambda layer: (layer(jnp.asarray(x)) ** 2).sum())(layer).kernel[...]
    patches = windows(x, size, 2, 0.0)
    output = np.einsum("byxuvi,uvio->byxo", patches, np.asarray(layer.kernel[...]))
    np.testing.assert_allclose(gradient, np.einsum("byxuvi,byxo->uvio", patches, 2 * output), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_computes_in_the_inputs_precision(size: int) -> None:
    layer = Convolution(3, 5, size=size, rngs=nnx.Rngs(0))
    assert layer.kernel[...].shape == (size, size, 3, 5) and layer.kernel[...].dtype == jnp.float32
    assert layer(jnp.ones((1, 4, 4, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("image", [(8, 8), (7, 10)])
def test_max_pool_never_takes_the_padding(image: tuple[int, int]) -> None:
    x = -np.random.default_rng(0).uniform(1.0, 2.0, (2, *image, 3)).astype(np.float32)
    expected = windows(x, 3, 2, -np.inf).max((3, 4))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), size=3, stride=2), expected)
    assert np.isfinite(expected).all()


def test_max_pool_sends_the_gradient_to_the_greatest() -> None:
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    gradient = np.asarray(jax.grad(lambda x: max_pool(x, size=3, stride=2).sum())(x))[0, :, :, 0]
    np.testing.assert_array_equal(gradient, [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])


def test_mean_pool_sums_in_float32() -> None:
    x = jnp.full((1, 64, 64, 2), 1.0, jnp.bfloat16).at[0, 0, 0, 1].set(257.0)
    found = mean_pool(x)
    assert found.dtype == jnp.bfloat16 and found.shape == (1, 2)
    np.testing.assert_array_equal(found.astype(jnp.float32), [[1.0, 1.0625]])
