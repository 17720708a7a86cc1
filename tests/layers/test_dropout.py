"""Masks are right on average, independent, repeatable, and the same however the array is sharded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune.layers.dropout import Dropout, dropout


def _noise(seed: int = 0, hidden: float = 0.1, attention: float = 0.2, head: float = 0.5, impl: str | None = None) -> Dropout:
    key = jax.random.key(seed, impl=impl)
    return Dropout(key=key, hidden=jnp.float32(hidden), attention=jnp.float32(attention), head=jnp.float32(head))


def _kept(noise: Dropout, shape: tuple[int, ...], site: str = "a", rate="hidden") -> np.ndarray:
    return np.asarray(noise.on(jnp.ones(shape), site, rate)) > 0


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize(("rate", "chance"), [("hidden", 0.1), ("attention", 0.2), ("head", 0.5)])
def test_share_and_scale(impl, rate, chance):
    y = np.asarray(_noise(impl=impl).on(jnp.ones((300, 1000)), "a", rate))
    kept = y > 0
    assert abs(kept.mean() - (1 - chance)) < 4 * np.sqrt(chance * (1 - chance) / kept.size)
    np.testing.assert_allclose(y[kept], 1 / (1 - chance), rtol=1e-6)


def test_counts_per_row_and_column_spread_like_independent_draws():
    kept = _kept(_noise(), (1000, 1000))
    for axis in (0, 1):
        assert abs(kept.sum(axis).var() / (1000 * 0.1 * 0.9) - 1) < 0.2  # 4.5 standard errors of a variance over 1000


def test_neighbours_rows_sites_keys_and_layers_are_independent():
    base = _kept(_noise(), (600, 1000))
    others = {
        "next column": np.roll(base, 1, 1),
        "column 16 on": np.roll(base, 16, 1),
        "next row": np.roll(base, 1, 0),
        "row 256 on": np.roll(base, 256, 0),
        "diagonal": np.roll(np.roll(base, 1, 0), 1, 1),
        "site": _kept(_noise(), (600, 1000), "b"),
        "key": _kept(_noise(1), (600, 1000)),
        "layer": _kept(_noise().fold(1), (600, 1000)),
        "another layer": _kept(_noise().fold(2), (600, 1000)),
    }
    for name, other in others.items():
        correlation = np.corrcoef(base.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4.5 / np.sqrt(base.size), name


def test_every_bit_of_the_key_counts():
    masks = [_kept(_noise(2**bit), (64, 256)) for bit in range(0, 31, 3)]
    agreement = [np.mean(a == b) for i, a in enumerate(masks) for b in masks[:i]]
    assert max(abs(a - 0.82) for a in agreement) < 5 * np.sqrt(0.82 * 0.18 / masks[0].size)


def test_hashes_are_uniform():
    """The share of kept elements follows the rate everywhere, so the hash has no favoured range."""
    for chance in (0.001, 0.03, 0.25, 0.77, 0.999):
        dropped = 1 - _kept(_noise(hidden=chance), (500, 2000)).mean()
        assert abs(dropped - chance) < 4.5 * np.sqrt(chance * (1 - chance) / 1e6)


def test_rates_zero_and_one():
    x = jnp.arange(1.0, 101.0).reshape(10, 10)
    np.testing.assert_array_equal(_noise(hidden=0.0).on(x, "a"), x)
    np.testing.assert_array_equal(_noise(hidden=1.0).on(x, "a"), 0 * x)


def test_none_is_off():
    x = jnp.ones((3, 4))
    assert dropout(x, None, "a") is x
    np.testing.assert_array_equal(dropout(x, _noise(), "a"), _noise().on(x, "a"))


def test_any_rank_and_dtype():
    for shape in ((), (5,), (2, 3, 4, 5)):
        for dtype in (jnp.float32, jnp.bfloat16):
            y = _noise().on(jnp.ones(shape, dtype), "a")
            assert y.shape == shape and y.dtype == dtype


def test_arrangement_of_rows_does_not_matter():
    np.testing.assert_array_equal(_kept(_noise(), (4, 6, 8)).reshape(24, 8), _kept(_noise(), (24, 8)))


def test_rates_and_folds_are_traced():
    compiled = jax.jit(lambda noise, layer: noise.fold(layer).on(jnp.ones((50, 64)), "a"))
    for layer, chance in ((0, 0.1), (3, 0.6)):
        expected = _noise(hidden=chance).fold(layer).on(jnp.ones((50, 64)), "a")
        np.testing.assert_array_equal(compiled(_noise(hidden=chance), jnp.int32(layer)), expected)
    assert compiled._cache_size() == 1


def test_in_scan_the_layer_number_may_be_a_counter():
    noise = _noise()

    def body(x, layer):
        return noise.fold(layer).on(x, "a"), None

    scanned = jax.jit(lambda x: jax.lax.scan(body, x, jnp.arange(3))[0])(jnp.ones((8, 64)))
    looped = jnp.ones((8, 64))
    for layer in range(3):
        looped = noise.fold(layer).on(looped, "a")
    np.testing.assert_allclose(scanned, looped, rtol=1e-6)


def test_gradient_has_the_same_mask_and_no_array_is_kept_for_it():
    noise = _noise()
    x = jax.random.normal(jax.random.key(5), (16, 32))
    y, pull = jax.vjp(lambda x: noise.on(x, "a"), x)
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0], noise.on(jnp.ones_like(x), "a"), rtol=1e-6)
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) <= 4


@pytest.mark.parametrize("spec", [PartitionSpec("data"), PartitionSpec(None, "data"), PartitionSpec(None, None, "data")])
def test_sharding_does_not_change_the_mask(spec):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    noise, x = _noise(), jnp.ones((8, 16, 64))
    sharded = jax.jit(lambda x: noise.on(x, "a"))(jax.device_put(x, NamedSharding(mesh, spec)))
    np.testing.assert_array_equal(sharded, noise.on(x, "a"))
