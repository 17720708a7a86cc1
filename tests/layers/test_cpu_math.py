"""The CPU rules' arithmetic against exact results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.layers.cpu_math import exp2, narrow, polynomial, stored, sum_rows, widen


def _floats() -> jax.Array:
    """Random bit patterns: all exponents, both signs, infinities, no NaN."""
    bits = jax.random.bits(jax.random.key(0), (100_000,), jnp.uint32)
    values = jax.lax.bitcast_convert_type(bits, jnp.float32)
    normal = jnp.abs(values) >= jnp.finfo(jnp.float32).tiny  # XLA's own conversion flushes the others to zero
    return jnp.concatenate([jnp.where(normal, values, 0.0), jnp.asarray([jnp.inf, -jnp.inf, 0.0, -0.0, 3.4e38, 1.00390625])])


def test_narrow_rounds_as_xla_does():
    x = _floats()
    np.testing.assert_array_equal(narrow(x, jnp.bfloat16).view(jnp.uint16), x.astype(jnp.bfloat16).view(jnp.uint16))
    for dtype in (jnp.float16, jnp.float32):
        assert narrow(x, dtype).dtype == dtype


def test_widen_is_exact():
    x = _floats().astype(jnp.bfloat16)
    np.testing.assert_array_equal(widen(x), x.astype(jnp.float32))


def test_not_a_number_passes():
    for sign in (1.0, -1.0):
        nan = jnp.asarray([sign]) * jnp.nan
        assert bool(jnp.isnan(widen(narrow(nan, jnp.bfloat16))).all()) and bool(jnp.isnan(exp2(nan, jnp.float32)).all())


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 3e-7), (jnp.bfloat16, 6e-6)])
def test_exp2(dtype, error):
    x = jnp.linspace(-125.9, 127.4, 50_001)
    np.testing.assert_allclose(exp2(x, dtype), 2.0 ** np.asarray(x, np.float64), rtol=error)
    assert not exp2(jnp.asarray([-1e30, -jnp.inf, -127.0]), dtype).any()


def test_exp2_of_zero_is_one():
    assert float(exp2(jnp.zeros(1), jnp.float32)[0]) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_sum_rows(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(sum_rows(x), x.reshape(-1, 5).sum(0), rtol=1e-5, atol=1e-5)


def test_polynomial_and_stored():
    x = jnp.asarray([0.5, 2.0])
    np.testing.assert_allclose(polynomial(x, np.asarray([1.0, 2.0, 3.0])), 1 + 2 * x + 3 * x**2)
    assert jax.tree.structure(stored((x, None))) == jax.tree.structure((x, None))
