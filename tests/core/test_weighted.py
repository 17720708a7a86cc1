"""A mean of weighted sums does not depend on how the rows were divided, and rows of weight 0 are not there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.core.weighted import Weighted

RANDOM = np.random.default_rng(0)
VALUES, WEIGHT = jnp.asarray(RANDOM.normal(size=(24, 3)), jnp.float32), jnp.asarray(RANDOM.uniform(0, 2, (24, 1)), jnp.float32)


def test_sum_and_weight() -> None:
    made = Weighted.of(VALUES, WEIGHT)
    np.testing.assert_allclose(made.total, (np.asarray(VALUES) * np.asarray(WEIGHT)).sum(), rtol=1e-6)
    np.testing.assert_allclose(made.weight, 3 * np.asarray(WEIGHT).sum(), rtol=1e-6)
    np.testing.assert_allclose(made.mean, np.average(VALUES, weights=np.broadcast_to(WEIGHT, VALUES.shape)), rtol=1e-5)


@pytest.mark.parametrize("cuts", [(1,), (5, 6, 20), (0, 24)])
def test_the_division_does_not_matter(cuts: tuple[int, ...]) -> None:
    parts = [Weighted.of(v, w) for v, w in zip(jnp.split(VALUES, cuts), jnp.split(WEIGHT, cuts), strict=True)]
    joined = sum(parts, Weighted.zero())
    whole = Weighted.of(VALUES, WEIGHT)
    np.testing.assert_allclose([joined.total, joined.weight, joined.mean], [whole.total, whole.weight, whole.mean], rtol=1e-5)
    means = np.mean([part.mean for part in parts])
    assert abs(means - whole.mean) > 1e-3, "the mean of means is another number, or this test shows nothing"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_weight_are_not_there(bad: float) -> None:
    spoilt, weight = VALUES.at[3].set(bad), WEIGHT.at[3].set(0.0)

    def total(values: jax.Array) -> jax.Array:
        return Weighted.of(values, weight).total

    assert total(spoilt) == total(VALUES)
    gradient = jax.grad(total)(spoilt)
    np.testing.assert_allclose(gradient, np.broadcast_to(weight, VALUES.shape), rtol=1e-6)
    assert not np.isfinite(Weighted.of(spoilt, WEIGHT).total), "with a weight it shows"


def test_nothing_weighs_nothing() -> None:
    for empty in (Weighted.zero(), Weighted.of(VALUES, jnp.zeros((24, 1)))):
        assert empty.mean == 0 and empty.weight == 0
    assert jax.grad(lambda x: Weighted.of(x, jnp.zeros(3)).mean)(jnp.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_sums_are_float32_whatever_comes_in() -> None:
    ones = Weighted.of(jnp.ones(1000, jnp.bfloat16), jnp.ones(1000, jnp.int32))
    assert ones.total == 1000 and ones.total.dtype == ones.weight.dtype == jnp.float32, "bfloat16 counts to 256"


def test_it_is_a_pytree() -> None:
    total, weight = jax.jit(lambda: Weighted.of(jnp.ones(4), jnp.full(4, 2.0)))().total, 8.0
    assert total == weight
    assert len(jax.tree.leaves(Weighted.zero())) == 2
