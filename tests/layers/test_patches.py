"""Patches are a convolution whose stride is its kernel; positions are resampled as PyTorch does."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxtune.core.errors import ConfigError
from jaxtune.layers.patches import PatchEmbedding, cubic_matrix, resize_positions

REFERENCE = Path(__file__).resolve().parents[1] / "references" / "vit_interpolated"


@pytest.mark.parametrize(("patch", "size", "channels"), [((4, 4), (16, 16), 3), ((2, 4), (8, 12), 1), ((4, 4), (18, 23), 3)])
def test_patches_equal_the_convolution(patch: tuple[int, int], size: tuple[int, int], channels: int) -> None:
    layer = PatchEmbedding(patch, channels, 10, deviation=1.0, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(10.0)
    image = jax.random.normal(jax.random.key(1), (2, *size, channels))
    convolved = jax.lax.conv_general_dilated(image, layer.kernel[...], patch, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    down, across = layer.grid(image.shape)
    assert convolved.shape == (2, down, across, 10) == (2, size[0] // patch[0], size[1] // patch[1], 10)
    expected = convolved.reshape(2, -1, 10) + jnp.arange(10.0)[None, None]
    np.testing.assert_allclose(layer(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "found"), [((16, 16, 1), "16 x 16 with 1 channel"), ((3, 16, 3), "3 x 16 with 3 channel")])
def test_images_that_do_not_fit_are_named(shape: tuple[int, ...], found: str) -> None:
    layer = PatchEmbedding((4, 4), 3, 10, deviation=1.0, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match=rf"found {found}.*the model takes 3 channel\(s\) and at least one patch of 4 x 4"):
        layer(jnp.zeros((1, *shape)))


def test_positions_as_torch_resamples_them() -> None:
    table = load_file(REFERENCE / "model.safetensors")["vit.embeddings.position_embeddings"][0]
    expected = load_file(REFERENCE / "reference.safetensors")["interpolated_position_embeddings"][0]
    found = resize_positions(jnp.asarray(table[1:]), (4, 4), (6, 8))
    np.testing.assert_allclose(found, expected[1:], atol=1e-6)


def test_the_same_grid_is_not_touched() -> None:
    table = jax.random.normal(jax.random.key(0), (12, 5))
    assert resize_positions(table, (3, 4), (3, 4)) is table
    assert not np.allclose(resize_positions(table, (3, 4), (4, 3)), table)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (4, 4), (7, 3), (1, 5), (14, 24)])
def test_cubic_weights_keep_constants_and_straight_lines(old: int, new: int) -> None:
    matrix = cubic_matrix(old, new)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)
    if old == new:
        np.testing.assert_allclose(matrix, np.eye(old), atol=1e-7)
