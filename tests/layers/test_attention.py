"""Every implementation against the plain formula: who sees whom, windows, soft caps, grouped queries, dropout, gradients, padding."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxtune.core.errors import ConfigError
from jaxtune.layers import attention as module
from jaxtune.layers.attention import attention
from jaxtune.layers.attention_splash import splash_attention
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.visibility import Visibility
from jaxtune.parallel.mesh import Mesh

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


# -- the one numeric test of all implementations ------------------------------------------------------------------------------

LONG = 256  # two blocks of the CPU rule and of the kernel
PACKED = np.concatenate([np.full((2, 100), 1), np.full((2, 90), 2), np.full((2, 50), 3), np.zeros((2, 16))], 1).astype(np.int32)
PACKED[1] = np.roll(PACKED[1], 16)  # padding on the left


def formula(q, k, v, *, seen, scale, soft_cap):
    """Written with loops over heads, nothing shared with the package; seen [B, T, S]."""
    out = []
    for head in range(q.shape[2]):
        own = head * k.shape[2] // q.shape[2]
        scores = jnp.einsum("bth,bsh->bts", q[:, :, head], k[:, :, own], precision="highest") * scale
        scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
        weight = jnp.where(seen, jnp.exp(scores - jnp.where(seen, scores, -np.inf).max(-1, keepdims=True)), 0.0)
        out.append(jnp.einsum("bts,bsh->bth", weight / weight.sum(-1, keepdims=True), v[:, :, own], precision="highest"))
    return jnp.stack(out, 2)


def long_inputs(kv_heads: int, dtype=jnp.float32):
    shapes = (2, LONG, N, H), (2, LONG, kv_heads, H), (2, LONG, kv_heads, H), (2, LONG, N, H)
    return [jax.random.normal(jax.random.key(i), s).astype(dtype) for i, s in enumerate(shapes)]


def seen_by_hand(segments: np.ndarray | None, window: int | None) -> np.ndarray:
    seen = np.zeros((2, LONG, LONG), bool)
    for row in range(2):
        for query in range(LONG):
            for key in range(0 if window is None else max(0, query - window + 1), query + 1):
                seen[row, query, key] = segments is None or segments[row, query] == segments[row, key] != 0
    return seen


@pytest.mark.parametrize(
    ("segments", "window", "soft_cap", "kv_heads"),
    [(None, None, None, 4), (PACKED, None, None, 2), (PACKED, 40, None, 1), (None, 200, 2.0, 2), (PACKED, None, 1.5, 4)],
)
@pytest.mark.parametrize("implementation", ["xla", "cpu", "splash"])
def test_every_implementation_is_the_formula(implementation, segments, window, soft_cap, kv_heads):
    *inputs, gradient = long_inputs(kv_heads)
    options: dict[str, Any] = {"segment_ids": None if segments is None else jnp.asarray(segments), "causal": True, "window": window}
    scale = 0.6
    if implementation == "splash":
        sight = Visibility.of(options["segment_ids"], None, True, window, 0)
        run = functools.partial(splash_attention, sight=sight, scale=scale, soft_cap=soft_cap, interpret=True)
    else:
        run = functools.partial(attention, **options, scale=scale, soft_cap=soft_cap, implementation=implementation)
    real = np.ones((2, LONG), bool) if segments is None else segments > 0
    seen = seen_by_hand(segments, window)
    seen |= ~seen.any(-1, keepdims=True)  # what a padded query sees is of no interest
    of_formula = functools.partial(formula, seen=jnp.asarray(seen), scale=scale, soft_cap=soft_cap)
    gradient = gradient * real[..., None, None]

    def all_of(run, q, k, v):
        out, pull = jax.vjp(run, q, k, v)
        return out * real[..., None, None], *pull(gradient)

    for ours, theirs in zip(jax.jit(functools.partial(all_of, run))(*inputs), all_of(of_formula, *inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


def real_inputs(dtype):
    """With a gradient at real tokens alone, and where those are."""
    *inputs, gradient = long_inputs(2, dtype)
    real = jnp.asarray(PACKED > 0)[..., None, None]
    return [*inputs, gradient * real.astype(dtype)], real


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_a_long_row_in_bfloat16_is_close(implementation, soft_cap):
    """Gradients of keys are sums over several blocks of queries."""
    inputs, real = real_inputs(jnp.bfloat16)
    options: dict[str, Any] = {"segment_ids": jnp.asarray(PACKED), "causal": True, "window": 150, "soft_cap": soft_cap}
    rounded = _run(*inputs, **options, implementation=implementation)
    exact = _run(*(x.astype(jnp.float32) for x in inputs), **options, implementation="xla")
    for a, b in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32) * real, b * real, atol=0.02 * float(jnp.abs(b).max()))


def test_a_long_row_with_dropout_has_the_same_mask_in_blocks():
    inputs, real = real_inputs(jnp.float32)
    options: dict[str, Any] = {"segment_ids": jnp.asarray(PACKED), "causal": True, "noise": NOISE, "window": 150}
    for a, b in zip(_run(*inputs, **options, implementation="cpu"), _run(*inputs, **options, implementation="xla"), strict=True):
        np.testing.assert_allclose(a * real, b * real, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("implementation", ["cpu", "xla"])
@pytest.mark.parametrize("window", [None, 5])
def test_one_token_at_a_time_against_a_cache(implementation, window):
    """Queries that start at a traced slot give what the whole row gives there; later slots of the cache may hold anything."""
    q, k, v, _ = _inputs(kv_heads=2)
    options: dict[str, Any] = {"causal": True, "window": window, "soft_cap": 2.0, "implementation": implementation}
    whole = attention(q, k, v, segment_ids=SEGMENTS, **options)

    @jax.jit
    def at(first):
        later = (jnp.arange(T) > first + 1)[None, :, None, None]
        own = (jnp.where(later, 77.0, x) for x in (k, v))
        some = jax.lax.dynamic_slice_in_dim(q, first, 2, 1)
        ids = jax.lax.dynamic_slice_in_dim(SEGMENTS, first, 2, 1)
        return attention(some, *own, segment_ids=ids, key_segment_ids=SEGMENTS, first_query=first, **options)

    for first in range(T - 1):
        real = (SEGMENTS[:, first : first + 2] > 0)[..., None, None]
        np.testing.assert_allclose(at(first) * real, whole[:, first : first + 2] * real, rtol=1e-5, atol=2e-6)
    assert at._cache_size() == 1


def test_causal_blocks_are_not_computed():
    """Of a row of eight blocks of queries, seven sixteenths of the scores are left out, and with a window nearly all."""
    q = jnp.zeros((1, 1024, 1, 8))

    def flops(**options) -> float:
        run = jax.jit(lambda q: attention(q, q, q, implementation="cpu", **options))
        return run.lower(q).compile().cost_analysis()["flops"]  # type: ignore[index]

    everything, causal, near = flops(), flops(causal=True), flops(causal=True, window=64)
    assert causal < 0.6 * everything and near < 0.3 * everything


# -- the switch ---------------------------------------------------------------------------------------------------------------


def ask(length=256, keys=None, width=64, dtype=jnp.bfloat16, causal=True, window=None, first_query=0, soft_cap=None, noise=None, own=False):
    q = jax.ShapeDtypeStruct((2, length, N, width), dtype)
    k = jax.ShapeDtypeStruct((2, keys or length, 2, width), dtype)
    ids = jnp.ones((2, length), jnp.int32)
    sight = Visibility.of(ids, jnp.ones((2, keys or length), jnp.int32) if own else None, causal, window, first_query)
    return module._Ask(q, k, sight, soft_cap, noise)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "gpu", "tpu"),
    [
        ({}, "cudnn", "splash"),
        ({"window": 16}, "cudnn", "splash"),
        ({"soft_cap": 30.0}, "xla", "splash"),
        ({"causal": False}, "cudnn", "xla"),
        ({"noise": NOISE}, "xla", "xla"),
        ({"dtype": jnp.float32}, "xla", "splash"),
        ({"width": 100}, "xla", "splash"),
        ({"width": 256}, "xla", "splash"),
        ({"length": 255}, "xla", "splash"),
        ({"length": 2, "keys": 64, "first_query": 3, "own": True}, "xla", "xla"),
    ],
    ids=str,
)
def test_what_auto_chooses(question, gpu, tpu):
    for backend, expected in (("cpu", "cpu"), ("gpu", gpu), ("tpu", tpu), ("metal", "xla")):
        assert module.chosen("auto", ask(**question), backend) == expected


def test_an_implementation_that_cannot_is_refused_with_its_reasons():
    with pytest.raises(ConfigError, match="cudnn cannot be used: it has no dropout of probabilities; it has no soft cap"):
        module.chosen("cudnn", ask(noise=NOISE, soft_cap=30.0), "gpu")
    with pytest.raises(ConfigError, match="splash cannot be used: it runs on a tpu, not on cpu"):
        attention(*_inputs()[:3], causal=True, implementation="splash")
    with pytest.raises(ConfigError, match="cudnn cannot be used: it runs on a gpu, not on cpu; it computes in bfloat16"):
        attention(*_inputs()[:3], implementation="cudnn")


def test_the_kernel_on_a_mesh_runs_on_each_devices_rows_and_heads():
    *inputs, _ = long_inputs(2)
    run = lambda q, k, v: splash_attention(q, k, v, Visibility.of(jnp.asarray(PACKED), None, True, None, 0), 0.5, None, interpret=True)  # noqa: E731
    with Mesh(data=2, fsdp=1, tensor=2).build(jax.devices()[:4]).active():
        sharded = jax.jit(run)(*inputs)
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_allclose(sharded, jax.jit(run)(*inputs), rtol=1e-5, atol=1e-5)
