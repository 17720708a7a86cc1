"""The CPU rule against the plain formula: masks, grouped queries, dropout, gradients, padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune.layers.attention import attention
from jaxtune.layers.dropout import Dropout

B, T, N, H = 2, 12, 4, 8
NOISE = Dropout(key=jax.random.key(7), hidden=jnp.float32(0.1), attention=jnp.float32(0.3), head=jnp.float32(0.1))
SEGMENTS = jnp.array([[1] * 8 + [0] * 4, [1] * 3 + [2] * 6 + [0] * 3])


def _inputs(kv_heads: int = N, keys: int = T, dtype=jnp.float32):
    shapes = (B, T, N, H), (B, keys, kv_heads, H), (B, keys, kv_heads, H), (B, T, N, H)
    return [jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(shapes)]


def _run(q, k, v, gradient, **options):
    """The output and the three gradients."""

    @jax.jit
    def run(q, k, v, gradient):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, **options), q, k, v)
        return out, *pull(gradient)

    return run(q, k, v, gradient)


@pytest.mark.parametrize(
    ("noise", "causal", "segments", "kv_heads"),
    [
        (None, False, None, 4),
        (None, True, None, 1),
        (None, False, SEGMENTS, 2),
        (NOISE, False, None, 1),
        (NOISE, False, SEGMENTS, 4),
        (NOISE, True, SEGMENTS, 2),
    ],
)
def test_values_and_gradients_equal_the_plain_formula(noise, causal, segments, kv_heads):
    options = {"segment_ids": segments, "causal": causal, "noise": noise}
    inputs = _inputs(kv_heads)
    fast = _run(*inputs, **options, implementation="cpu")
    plain = _run(*inputs, **options, implementation="xla")
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
def test_keys_of_their_own_length_and_segments(implementation):
    q, k, v, _ = _inputs(kv_heads=2, keys=5)
    key_segments = jnp.array([[1, 1, 1, 0, 0], [1, 2, 2, 2, 0]])
    out = attention(q, k, v, segment_ids=SEGMENTS, key_segment_ids=key_segments, implementation=implementation)
    shorter = attention(q[:1, :8], k[:1, :3], v[:1, :3], scale=H**-0.5, implementation=implementation)
    np.testing.assert_allclose(out[:1, :8], shorter, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
def test_padding_is_finite_and_touches_nothing(implementation):
    q, k, v, gradient = _inputs()
    real = (SEGMENTS > 0)[..., None, None]
    options = {"segment_ids": SEGMENTS, "implementation": implementation, "noise": NOISE}
    first = _run(q, k, v, gradient * real, **options)
    other = [jnp.where(real, x, 100.0) for x in (q, k, v)]
    second = _run(*other, gradient * real, **options)
    for a, b in zip(first, second, strict=True):
        assert bool(jnp.isfinite(a).all() and jnp.isfinite(b).all())
        np.testing.assert_allclose(a * real, b * real, rtol=1e-5, atol=2e-6)
    for a in (*first[1:], *second[1:]):
        np.testing.assert_array_equal(jnp.where(real, 0.0, a), 0.0)


def test_a_query_without_any_key_is_finite():
    q, k, v, gradient = _inputs()
    for array in _run(q, k, v, gradient, segment_ids=jnp.full((B, T), 1), key_segment_ids=jnp.full((B, T), 2)):
        assert bool(jnp.isfinite(array).all())


@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_scores_of_any_size(size):
    """Large scores neither overflow nor lose the row's sum, hidden keys with still larger ones included."""
    q, k, v, gradient = _inputs()
    k = k.at[:, 8:].multiply(30.0)
    fast, plain = (_run(q * size, k, v, gradient, segment_ids=SEGMENTS, implementation=i) for i in ("cpu", "xla"))
    for a, b in zip(fast, plain, strict=True):
        # float32 scores of several thousand are right to a thousandth, and so is their exponential.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("noise", [None, NOISE], ids=["plain", "dropout"])
def test_bfloat16_is_close(noise, implementation):
    inputs = _inputs(dtype=jnp.bfloat16)
    fast = _run(*inputs, segment_ids=SEGMENTS, noise=noise, implementation=implementation)
    exact = _run(*(x.astype(jnp.float32) for x in inputs), segment_ids=SEGMENTS, noise=noise, implementation="xla")
    for a, b in zip(fast, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * float(jnp.abs(b).max()))


def test_one_program_for_all_rates_and_the_layer_in_a_scan():
    q, k, v, _ = _inputs()

    @jax.jit
    def run(q, noise):
        body = lambda q, layer: (attention(q, k, v, noise=noise.fold(layer), implementation="cpu"), None)  # noqa: E731
        return jax.grad(lambda q: jnp.square(jax.lax.scan(body, q, jnp.arange(2))[0]).sum())(q)

    first, second = run(q, NOISE), run(q, NOISE.replace(attention=jnp.float32(0.0)))
    assert run._cache_size() == 1 and not jnp.allclose(first, second)


def test_sharded_over_batch_and_heads():
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    q, k, v, gradient = _inputs()
    options = {"segment_ids": SEGMENTS, "noise": NOISE, "implementation": "cpu"}
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor", None))
    sharded = _run(*(jax.device_put(x, sharding) for x in (q, k, v, gradient)), **options)
    for a, b in zip(sharded, _run(q, k, v, gradient, **options), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
