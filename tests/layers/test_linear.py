"""Dense layers and embeddings: products in the input's dtype, parameters as they are stored, adapters by their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.dropout import Dropout, adapters_with
from jaxtune.layers.linear import Embedding, Form, Linear


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


# -- adapters ---------------------------------------------------------------------------------------------------------------


def adapted(form: Form, *, bias: bool = True, seed: int = 0) -> tuple[Linear, dict[str, np.ndarray]]:
    """A layer 7 -> 5 with random numbers everywhere, and these."""
    random = np.random.default_rng(seed)
    layer = Linear(7, 5, bias=bias, deviation=1.0, rngs=nnx.Rngs(0))
    shapes: dict[str, tuple[int, ...]] = {"kernel": (7, 5), "bias": (5,), "lora_a": (7, 3), "lora_b": (3, 5)}
    shapes |= {"magnitude": (5,), "scale_in": (7,), "scale_out": (5,)}
    numbers = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in numbers.items():
        if name != "bias" or bias:
            setattr(layer, name, nnx.Param(jnp.asarray(value)))
    layer.form = form
    return layer, numbers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "inputs", "outputs"])
def test_adapters_by_their_formulas(kind: str, bias: bool) -> None:
    forms = {
        "lora": Form(rank=3, alpha=6.0),
        "rslora": Form(rank=3, alpha=6.0, rslora=True),
        "dora": Form(rank=3, alpha=6.0, magnitude=True),
        "inputs": Form(scale_in=True),
        "outputs": Form(scale_out=True),
    }
    layer, n = adapted(forms[kind], bias=bias)
    x = np.random.default_rng(1).standard_normal((2, 4, 7)).astype(np.float32)
    b = n["bias"] if bias else 0.0
    delta = n["lora_a"] @ n["lora_b"]
    turned = n["kernel"] + 2.0 * delta
    expected = {
        "lora": x @ turned + b,
        "rslora": x @ (n["kernel"] + 6.0 / np.sqrt(3.0) * delta) + b,
        "dora": x @ (turned / np.linalg.norm(turned, axis=0) * n["magnitude"]) + b,
        "inputs": (x * n["scale_in"]) @ n["kernel"] + b,
        "outputs": (x @ n["kernel"] + b) * n["scale_out"],
    }
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected[kind], rtol=2e-5, atol=2e-5)


def test_the_lengths_of_dora_are_constants_of_the_step() -> None:
    """Section 4.3 of the paper: the gradient of A is that of m / c x A B with a fixed c."""
    layer, n = adapted(Form(rank=3, alpha=3.0, magnitude=True))
    x = np.random.default_rng(1).standard_normal((4, 7)).astype(np.float32)
    found = nnx.grad(lambda layer: layer(jnp.asarray(x)).sum())(layer)
    turned = n["kernel"] + n["lora_a"] @ n["lora_b"]
    ratio = n["magnitude"] / np.linalg.norm(turned, axis=0)
    np.testing.assert_allclose(found.lora_b[...], n["lora_a"].T @ x.T @ np.ones((4, 5)) * ratio, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.magnitude[...], (x @ turned).sum(0) / np.linalg.norm(turned, axis=0), rtol=1e-4, atol=1e-4)


def test_dropout_acts_on_the_adapter_alone() -> None:
    layer, n = adapted(Form(rank=3, alpha=3.0, site="q"))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((200, 7)).astype(np.float32))
    noise = Dropout(jax.random.key(0), *(jnp.float32(0.0),) * 3, adapter=jnp.float32(0.5))
    with adapters_with(noise):
        dropped = np.asarray(layer(x))
        np.testing.assert_array_equal(dropped, layer(x))
        layer.form = Form(rank=3, alpha=3.0, site="k")
        assert not np.array_equal(dropped, layer(x))
        layer.form = None
        np.testing.assert_allclose(layer(x), np.asarray(x) @ n["kernel"] + n["bias"], rtol=1e-5, atol=1e-5)
    layer.form = Form(rank=3, alpha=3.0, site="q")
    plain = np.asarray(layer(x))
    assert np.abs(dropped - plain).max() > 0.1
    base = np.asarray(x) @ n["kernel"] + n["bias"]
    kept = np.asarray(noise.on(x, "q", "adapter")) @ n["lora_a"] @ n["lora_b"]
    np.testing.assert_allclose(dropped, base + kept, rtol=1e-4, atol=1e-4)
