"""Dense layers and embeddings: parameters in float32 or compute precision, products in the input's dtype.

Every dense layer of every family is a `Linear`, so adapters and quantized kernels are written once, here. An adapter adds parameters
beside a kernel that stays as it is; `models/adapters.py` decides which layers get one.

Letters: I in, O out, R rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.layers.dropout import in_adapters
from jaxtune.layers.matmul import matmul, matmul_sum
from jaxtune.layers.quantized import QuantizedKernel


@dataclass(frozen=True)
class Form:
    """What an adapter adds to one dense layer: the static part.

    - rank above 0: LoRA (Hu et al. 2021, arXiv 2106.09685), y = x W + scale x A B; `magnitude` makes it DoRA (Liu et al. 2024,
      arXiv 2402.09353), whose columns W + scale A B are brought to a trained length.
    - `scale_in`, `scale_out`: IA3 (Liu et al. 2022, arXiv 2205.05638), inputs or outputs times a trained vector.
    """

    rank: int = 0
    alpha: float = 1.0
    rslora: bool = False  # alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732) in place of alpha / rank
    magnitude: bool = False
    scale_in: bool = False
    scale_out: bool = False
    init: Literal["kaiming", "gaussian"] = "kaiming"
    site: str = ""  # of dropout: other layers, other masks

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Linear(nnx.Module):
    """x @ kernel + bias, kernel [I, O]; with a form: lora_a [I, R], lora_b [R, O], magnitude [O], scale_in [I], scale_out [O]."""

    lora_a: nnx.Param
    lora_b: nnx.Param
    magnitude: nnx.Param
    scale_in: nnx.Param
    scale_out: nnx.Param

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, deviation: float = 0.02, rngs: nnx.Rngs):
        self.kernel: nnx.Param | QuantizedKernel = nnx.Param(
            deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (inputs, outputs), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None
        self.form: Form | None = None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        form, bias = self.form, None if self.bias is None else self.bias[...]
        if form is None:
            return self._product(x, bias)
        if form.scale_in:
            x = x * _row(self.scale_in[...], x)
        if not form.rank:
            y = self._product(x, bias)
        else:
            noise = in_adapters()
            dropped = x if noise is None else noise.on(x, form.site, "adapter")
            y = self._product_and(matmul(dropped, self.lora_a[...]), form.scale * self.lora_b[...], x)
            if form.magnitude:
                y = y * _row(self.magnitude[...] / self._lengths(form), x)
            y = y if bias is None else y + _row(bias, y)
        return y * _row(self.scale_out[...], y) if form.scale_out else y

    def _product(self, x: Float[Array, "... I"], bias: Float[Array, " O"] | None) -> Float[Array, "... O"]:
        if not isinstance(self.kernel, QuantizedKernel):
            return matmul(x, self.kernel[...], bias=bias)
        y = self.kernel.multiply(x)
        return y if bias is None else y + _row(bias, y)

    def _product_and(self, low: Float[Array, "... R"], up: Float[Array, "R O"], x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        if isinstance(self.kernel, QuantizedKernel):
            return self.kernel.multiply_and(low, up, x)
        return matmul_sum(x, self.kernel[...], low, up)

    def _lengths(self, form: Form) -> Float[Array, " O"]:
        """Lengths of the columns of W + scale A B; the paper (section 4.3) treats them as constants of the step."""
        columns = float_kernel(self.kernel) + form.scale * matmul(self.lora_a[...], self.lora_b[...])
        return jax.lax.stop_gradient(column_lengths(columns))


def float_kernel(kernel: nnx.Param | QuantizedKernel) -> Float[Array, "... I O"]:
    """The kernel's numbers in float32."""
    return kernel.float() if isinstance(kernel, QuantizedKernel) else kernel[...].astype(jnp.float32)


def column_lengths(kernel: Float[Array, "... I O"]) -> Float[Array, "... O"]:
    """Euclidean length of every output's weights."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=-2))


def _row(vector: Float[Array, " D"], x: Float[Array, "... E"]) -> Float[Array, "... D"]:
    """A vector against the last axis of x, in its dtype."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


class Embedding(nnx.Module):
    """Rows of a table [V, D] by index."""

    def __init__(self, count: int, width: int, *, deviation: float = 0.02, rngs: nnx.Rngs):
        self.embedding = nnx.Param(deviation * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, (count, width), jnp.float32))

    def __call__(self, index: Int[Array, "..."]) -> Float[Array, "... D"]:
        return jnp.take(self.embedding[...], index, axis=0, mode="clip")
