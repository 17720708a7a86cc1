"""Images as rows of patches: one matrix product on unfolded pixels, and positions that follow another image size.

A convolution whose stride is its kernel reads every pixel once, so unfolding is a transpose and the sum is a product that
`layers/matmul` already runs well on every backend.

Letters: B batch, Y X image height and width, C channels, P patches (row by row), D features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.core.errors import ConfigError
from jaxtune.layers.matmul import matmul

CUBIC = -0.75  # PyTorch's cubic coefficient; jax.image.resize has -0.5


class PatchEmbedding(nnx.Module):
    """image -> patches; the kernel keeps a convolution's shape [patch height, patch width, C, D]."""

    def __init__(self, patch: tuple[int, int], channels: int, width: int, *, deviation: float, rngs: nnx.Rngs):
        shape = (*patch, channels, width)
        self.kernel = nnx.Param(deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.patch = patch
        self.channels = channels

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches down and across an image [..., Y, X, C]; pixels beyond the last whole patch are not read.

        Raises:
            ConfigError: other channels, or smaller than one patch.
        """
        height, width, channels = image_shape[-3:]
        down, across = height // self.patch[0], width // self.patch[1]
        if channels != self.channels or not down or not across:
            raise ConfigError(
                f"image: found {height} x {width} with {channels} channel(s); the model takes {self.channels} channel(s) and at least "
                f"one patch of {self.patch[0]} x {self.patch[1]}: change the task's image settings or the base"
            )
        return down, across

    def __call__(self, image: Float[Array, "B Y X C"]) -> Float[Array, "B P D"]:
        down, across = self.grid(image.shape)
        high, wide = self.patch
        pixels = image[:, : down * high, : across * wide].reshape(image.shape[0], down, high, across, wide, self.channels)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(image.shape[0], down * across, -1)
        kernel = self.kernel[...]
        return matmul(pixels, kernel.reshape(-1, kernel.shape[-1]), bias=self.bias[...])


def resize_positions(table: Float[Array, "P D"], old: tuple[int, int], new: tuple[int, int]) -> Float[Array, "P D"]:
    """Position rows of an `old` (down, across) grid for a `new` one, as torch's bicubic interpolation without antialiasing."""
    if old == new:
        return table
    rows, columns = jnp.asarray(cubic_matrix(old[0], new[0])), jnp.asarray(cubic_matrix(old[1], new[1]))
    grid = table.astype(jnp.float32).reshape(*old, -1)
    resized = jnp.einsum("yY,YXD,xX->yxD", rows, grid, columns, precision="highest")
    return resized.reshape(-1, table.shape[-1]).astype(table.dtype)


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old] weights that resample `old` values to `new`: pixel centres aligned by area, the border value repeated outside."""
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(position - (first + tap))
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * CUBIC - 4 * CUBIC
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)
