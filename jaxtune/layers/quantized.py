"""Frozen kernels in 8 or 4 bits: stored as codes and scales, made float again where they are multiplied, never kept so.

int8 is qwix' definition: one scale per output, absmax / 127.5, and codes -128..127. nf4 is that of bitsandbytes (QLoRA, Dettmers et al.
2023, arXiv 2305.14314): 16 levels, one float32 absmax per 64 inputs of an output, two codes per byte, the first in the high half. Both
are reproduced bit for bit (`tests/references/quantized`), so a kernel means the same here and there.

Letters: I in, O out, P packed inputs (I, or I / 2 where two codes share a byte), S scales per output (1, or I / 64).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.layers.matmul import matmul, matmul_sum

Format = Literal["int8", "nf4"]
BLOCK = 64
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
_BOUNDS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
_CODES: dict[Format, np.dtype] = {"int8": np.dtype(np.int8), "nf4": np.dtype(np.uint8)}
_HIGHEST_INT8 = 127.5  # half a step above the last code, so that its whole bucket is used
_SMALLEST_SCALE = np.sqrt(np.finfo(np.float32).tiny)


class Quantized(nnx.Param):
    """Codes or scales: read like a frozen parameter, and no phase can train them."""


class QuantizedKernel(nnx.Module):
    """What stands in the place of a kernel [I, O]: `codes` [P, O] and `scales` [S, O], with a leading layer axis where it is stacked."""

    def __init__(self, shape: Sequence[int], form: Format):
        """Of zeros: the numbers come from a checkpoint, tensor by tensor."""
        codes, scales = shapes(shape, form)
        self.codes = Quantized(jnp.zeros(codes, _CODES[form]))
        self.scales = Quantized(jnp.ones(scales, jnp.float32))

    def float(self, dtype: DTypeLike = jnp.float32) -> Float[Array, "... I O"]:
        """The kernel that the codes stand for."""
        return dequantize(self.codes[...], self.scales[...], dtype)

    def multiply(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """x times the kernel, in x's dtype. The backward pass makes the kernel float once more instead of keeping it."""
        return _product(x, self.codes[...], self.scales[...])

    def multiply_and(self, low: Float[Array, "... R"], up: Float[Array, "R O"], x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """x times the kernel, plus low times up, rounded once (`matmul_sum`)."""
        return _sum(x, self.codes[...], self.scales[...], low, up)


def shapes(kernel: Sequence[int], form: Format) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of codes and scales for a kernel [..., I, O]."""
    *rows, inputs, outputs = kernel
    packed, scales = (inputs, 1) if form == "int8" else (inputs // 2, inputs // BLOCK)
    return (*rows, packed, outputs), (*rows, scales, outputs)


def kernel_shape(codes: jax.ShapeDtypeStruct | np.ndarray | jax.Array) -> tuple[int, ...]:
    """The shape [..., I, O] of the kernel that these codes stand for."""
    *rows, packed, outputs = codes.shape
    return (*rows, 2 * packed if format_of(codes.dtype) == "nf4" else packed, outputs)


def format_of(dtype: DTypeLike) -> Format:
    """The format whose codes have this dtype."""
    return next(form for form, own in _CODES.items() if own == np.dtype(dtype))


def fits(inputs: int, form: Format) -> bool:
    """Whether a kernel of so many inputs can be stored."""
    return form == "int8" or inputs % BLOCK == 0


def quantize(kernel: Float[np.ndarray, "I O"], form: Format) -> tuple[Int[np.ndarray, "P O"], Float[np.ndarray, "S O"]]:
    """Codes and scales of one kernel, on the host."""
    kernel = np.asarray(kernel, np.float32)
    if form == "int8":
        scales = np.abs(kernel).max(0, keepdims=True) * np.float32(1 / _HIGHEST_INT8)  # XLA makes such products of qwix' divisions
        scales = np.where(scales < _SMALLEST_SCALE, np.float32(1), scales)
        return np.clip(np.round(kernel * (np.float32(1) / scales)), -128, 127).astype(np.int8), scales
    blocks = kernel.reshape(-1, BLOCK, kernel.shape[-1])
    scales = np.abs(blocks).max(1)
    inverse = np.float32(1) / np.maximum(scales, np.float32(1e-38))
    scaled = np.clip(blocks * inverse[:, None], -1, 1).reshape(kernel.shape)
    codes = np.searchsorted(_BOUNDS, scaled).astype(np.uint8)
    return codes[0::2] << 4 | codes[1::2], scales


def dequantize(codes: Int[Array, "... P O"], scales: Float[Array, "... S O"], dtype: DTypeLike = jnp.float32) -> Float[Array, "... I O"]:
    """The kernel, computed in float32 and rounded once to `dtype`."""
    if format_of(codes.dtype) == "int8":
        return (codes.astype(jnp.float32) * scales).astype(dtype)
    *rows, packed, outputs = codes.shape
    pairs = codes.reshape(*rows, -1, BLOCK // 2, 1, outputs)
    levels = _level(jnp.concatenate([pairs >> 4, pairs & 15], axis=-2))
    return (levels * scales[..., None, None, :]).astype(dtype).reshape(*rows, 2 * packed, outputs)


def _level(code: Int[Array, "..."]) -> Float[Array, "..."]:
    """LEVELS[code], by a tree of selections: accelerators have no quick look-up, and on CPU it fuses with the product's input."""
    values: list[Array | np.float32] = list(LEVELS)
    for bit in range(4):
        is_set = (code >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return jnp.asarray(values[0])


@jax.custom_vjp
def _product(x: Float[Array, "... I"], codes: Int[Array, "P O"], scales: Float[Array, "S O"]) -> Float[Array, "... O"]:
    return matmul(x, dequantize(codes, scales, x.dtype))


def _backward(saved: tuple[Array, Array], gradient: Float[Array, "... O"]) -> tuple[Float[Array, "... I"], None, None]:
    kernel = dequantize(*saved, gradient.dtype)
    # matmul's own rule chooses the layout; it is linear in x, so that any x will do
    anywhere = jnp.zeros((*gradient.shape[:-1], kernel.shape[0]), gradient.dtype)
    _, pull_back = jax.vjp(partial(matmul, kernel=kernel), anywhere)
    return pull_back(gradient)[0], None, None


@jax.custom_vjp
def _sum(
    x: Float[Array, "... I"], codes: Int[Array, "P O"], scales: Float[Array, "S O"], low: Float[Array, "... R"], up: Float[Array, "R O"]
) -> Float[Array, "... O"]:
    return matmul_sum(x, dequantize(codes, scales, x.dtype), low, up)


def _sum_backward(saved: tuple[Array, ...], gradient: Float[Array, "... O"]) -> tuple[Array | None, ...]:
    codes, scales, low, up = saved
    _, pull_back = jax.vjp(matmul, low, up.astype(low.dtype))
    of_low, of_up = pull_back(gradient)
    return *_backward((codes, scales), gradient), of_low, of_up.astype(up.dtype)


_product.defvjp(lambda x, codes, scales: (_product(x, codes, scales), (codes, scales)), _backward)
_sum.defvjp(lambda x, codes, scales, low, up: (_sum(x, codes, scales, low, up), (codes, scales, low, up)), _sum_backward)
