"""Convolutions over channels-last images, padded by kernel // 2 on both sides.

The padding is explicit because "SAME" pads a stride of 2 on one side only, which shifts every feature of a PyTorch checkpoint.

Letters: B batch, Y X height and width, I in, O out channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.layers.matmul import matmul


class Convolution(nnx.Module):
    """Square kernel [k, k, I, O] without bias; initialised by the fan of its outputs, for a relu to follow."""

    def __init__(self, inputs: int, outputs: int, *, size: int, stride: int = 1, rngs: nnx.Rngs):
        deviation = (2.0 / (size * size * outputs)) ** 0.5
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.size = size
        self.stride = stride

    def __call__(self, x: Float[Array, "B Y X I"]) -> Float[Array, "B y x O"]:
        kernel = self.kernel[...]
        if self.size == 1:  # one pixel at a time: a matrix product
            return matmul(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        pad = self.size // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
