"""The product's CPU rule against autodiff's own choice."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.layers.matmul import matmul, matmul_sum


def _random(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@partial(jax.jit, static_argnums=3)
def _run(x, kernel, bias, backend):
    y, pull = jax.vjp(lambda x, kernel, bias: matmul(x, kernel, bias=bias, backend=backend), x, kernel, bias)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize("leading", [(), (6,), (512,), (2, 7), (2, 3, 5)])
@pytest.mark.parametrize("sizes", [(8, 24), (24, 8)])
def test_values_and_gradients_equal_autodiff(leading, sizes):
    x, kernel, bias = _random(0, *leading, sizes[0]), _random(1, *sizes), _random(2, sizes[1])
    for fast, plain in zip(_run(x, kernel, bias, "cpu"), _run(x, kernel, bias, "tpu"), strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=2e-5)


def test_bfloat16_is_close_and_float32_kernels_get_float32_gradients():
    x, kernel, bias = _random(0, 2, 16, 8, dtype=jnp.bfloat16), _random(1, 8, 24), _random(2, 24)
    exact = _run(x.astype(jnp.float32), kernel, bias, "tpu")
    for found in (_run(x, kernel, bias, "cpu"), _run(x, kernel, bias, "tpu")):
        assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * float(jnp.abs(b).max()))


def test_dtype_names_the_computation():
    x, kernel = _random(0, 3, 4), _random(1, 4, 5)
    for backend in ("cpu", "tpu"):
        assert matmul(x, kernel, jnp.bfloat16, backend=backend).dtype == jnp.bfloat16


@pytest.mark.parametrize(("wanted", "products"), [("x", 2), ("kernel", 2), ("both", 3)])
def test_no_product_is_made_for_a_gradient_nobody_asks_for(wanted, products):
    x, kernel = _random(0, 2, 16, 8), _random(1, 8, 24)
    loss = lambda x, kernel: jnp.square(matmul(x, kernel, backend="cpu")).sum()  # noqa: E731
    gradient = jax.grad(loss, {"x": 0, "kernel": 1, "both": (0, 1)}[wanted])
    assert str(jax.make_jaxpr(gradient)(x, kernel)).count("dot_general") == products


def test_a_frozen_kernel_keeps_no_activation():
    """Differentiation for x alone saves the kernel and not x: else LoRA would hold every activation."""
    x, kernel = _random(0, 2, 16, 8), _random(1, 8, 24)
    _, pull = jax.vjp(lambda x: matmul(x, kernel, backend="cpu"), x)
    assert (2, 16, 8) not in [leaf.shape for leaf in jax.tree.leaves(pull)]


def test_inside_scan_and_vmap():
    x, kernels = _random(0, 2, 4, 8), _random(1, 3, 8, 8) / 3

    def loss(kernels, backend):
        y, _ = jax.lax.scan(lambda x, kernel: (matmul(x, kernel, backend=backend), None), x, kernels)
        return jnp.square(y).sum() + jax.vmap(lambda kernel: matmul(x, kernel, backend=backend).sum())(kernels).sum()

    fast, plain = (jax.jit(jax.grad(loss), static_argnums=1)(kernels, backend) for backend in ("cpu", "tpu"))
    np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-5)


def test_a_sum_of_products_and_its_gradients():
    x, kernel, low, up = _random(0, 2, 16, 8), _random(1, 8, 24), _random(2, 2, 16, 3), _random(3, 3, 24)
    weights = _random(4, 2, 16, 24)
    fast = jax.grad(lambda *given: (matmul_sum(*given) * weights).sum(), (0, 1, 2, 3))(x, kernel, low, up)
    plain = jax.grad(lambda x, kernel, low, up: ((x @ kernel + low @ up) * weights).sum(), (0, 1, 2, 3))(x, kernel, low, up)
    np.testing.assert_allclose(matmul_sum(x, kernel, low, up), x @ kernel + low @ up, rtol=1e-5, atol=1e-5)
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_small_addend_is_not_swallowed():
    """In bfloat16: a mean over many outputs moves by what is added, though it is less than half of each one's last bit."""
    x, kernel, low = (_random(seed, *shape, dtype=jnp.bfloat16) for seed, shape in ((0, (64, 32, 16)), (1, (16, 64)), (2, (64, 32, 2))))
    up = jnp.full((2, 64), 2.0**-10, jnp.bfloat16)
    low = jnp.ones_like(low)
    moved = lambda y: float((y.astype(jnp.float32) - (x @ kernel).astype(jnp.float32)).mean())  # noqa: E731
    exact = 2 * 2.0**-10
    assert moved(matmul_sum(x, kernel, low, up)) == pytest.approx(exact, rel=0.2)
    assert moved(x @ kernel + low @ up) != pytest.approx(exact, rel=0.2)


def test_a_frozen_kernel_beside_trained_ones_keeps_no_activation():
    x, kernel, low, up = _random(0, 2, 16, 8), _random(1, 8, 24), _random(2, 2, 16, 3), _random(3, 3, 24)
    _, pull = jax.vjp(lambda low, up: matmul_sum(x, kernel, low, up), low, up)
    assert (2, 16, 8) not in [leaf.shape for leaf in jax.tree.leaves(pull)]
