"""Kernels in 8 and 4 bits: equal to bitsandbytes and qwix bit for bit, multiplied and differentiated like the float kernel they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxtune.layers import quantized
from jaxtune.layers.matmul import matmul
from jaxtune.layers.quantized import QuantizedKernel, dequantize, kernel_shape, quantize

REFERENCES = Path(__file__).resolve().parents[1] / "references" / "quantized"
FORMS: Any = ("int8", "nf4")


def test_nf4_is_that_of_bitsandbytes() -> None:
    theirs = load_file(REFERENCES / "nf4.safetensors")
    outputs, inputs = theirs["weights"].shape
    codes, scales = quantize(theirs["weights"].T, "nf4")
    np.testing.assert_array_equal(quantized.LEVELS, theirs["levels"])
    np.testing.assert_array_equal(codes.T, theirs["codes"].reshape(outputs, inputs // 2))
    np.testing.assert_array_equal(scales.T, theirs["absmax"].reshape(outputs, inputs // 64))
    np.testing.assert_array_equal(dequantize(jnp.asarray(codes), jnp.asarray(scales)).T, theirs["dequantized"])


def test_int8_is_that_of_qwix() -> None:
    theirs = load_file(REFERENCES / "int8.safetensors")
    codes, scales = quantize(theirs["weights"].T, "int8")
    np.testing.assert_array_equal(codes.T, theirs["codes"])
    np.testing.assert_array_equal(scales.T, theirs["scales"])
    np.testing.assert_array_equal(dequantize(jnp.asarray(codes), jnp.asarray(scales)).T, theirs["dequantized"])


def kernel(form: Any, shape: tuple[int, ...] = (128, 24), seed: int = 0) -> QuantizedKernel:
    made = QuantizedKernel(shape, form)
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    parts = [quantize(each, form) for each in weights.reshape(-1, *shape[-2:])]
    for variable, rows in zip((made.codes, made.scales), zip(*parts, strict=True), strict=True):
        assert variable[...].dtype == rows[0].dtype
        variable[...] = jnp.asarray(np.stack(rows).reshape(variable[...].shape))
    return made


@pytest.mark.parametrize("form", FORMS)
def test_error_is_within_half_a_step(form: Any) -> None:
    weights = np.random.default_rng(0).standard_normal((128, 24)).astype(np.float32)
    error = np.abs(np.asarray(kernel(form).float()) - weights)
    if form == "int8":
        assert (error <= np.abs(weights).max(0, keepdims=True) / 127.5 * 0.501).all()
    else:
        widest = np.diff(quantized.LEVELS).max() / 2
        assert (error.reshape(2, 64, 24) <= np.abs(weights).reshape(2, 64, 24).max(1, keepdims=True) * widest * 1.001).all()
    assert error.max() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_and_gradient_are_those_of_the_float_kernel(form: Any, dtype: Any) -> None:
    it = kernel(form)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5, 128)), dtype)
    ours, back = jax.vjp(it.multiply, x)
    theirs, back_theirs = jax.vjp(lambda x: matmul(x, it.float(dtype)), x)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(back(ours)[0], back_theirs(ours)[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_backward_pass_keeps_codes_and_no_float_kernel(form: Any) -> None:
    it = kernel(form, (256, 192))
    x = jnp.ones((3, 4, 256))
    _, back = jax.vjp(it.multiply, x)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(back))
    assert kept < 256 * 192 * 2


@pytest.mark.parametrize("form", FORMS)
def test_stacked_kernels_are_their_rows(form: Any) -> None:
    it = kernel(form, (3, 128, 8))
    assert kernel_shape(it.codes.get_value()) == (3, 128, 8)
    rows = [dequantize(it.codes[...][row], it.scales[...][row]) for row in range(3)]
    np.testing.assert_array_equal(it.float(), np.stack(rows))
