"""The chunked loss against the plain one: values, all gradients, what is never computed and never held, and meshes."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.layers import lm_loss as module
from jaxtune.layers.lm_loss import lm_loss, log_probabilities, top_log_probabilities
from jaxtune.parallel.mesh import Mesh

B, T, D, V = 8, 6, 16, 64
RNG = np.random.default_rng(0)
WEIGHT = jnp.asarray((RNG.random((B, T)) < 0.4) * RNG.choice([1.0, 0.5], (B, T)), jnp.float32)
HIDDEN, WEIGHTS, BIAS = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((B, T, D), (V, D), (V,)))
TARGETS = (
    jnp.asarray(RNG.integers(0, V, (B, T)), jnp.int32).at[:, ::2].set(jnp.argmax(jnp.einsum("BTD,VD->BTV", HIDDEN, WEIGHTS), -1)[:, ::2])
)
TO_LOSS, TO_LOG = (jnp.asarray(RNG.normal(size=(B, T)), jnp.float32) for _ in range(2))

OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale": 0.3},
    {"soft_cap": 4.0},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"soft_cap": 4.0, "scale": 0.5, "label_smoothing": 0.2, "z_loss": 0.02},
]


def plain(hidden, weights, bias, targets=TARGETS, *, soft_cap=None, scale=1.0, label_smoothing=0.0, z_loss=0.0):
    """All logits at once, as transformers, PyTorch's CrossEntropyLoss and PaLM define the parts."""
    logits = jnp.einsum("BTD,VD->BTV", hidden, weights, precision="highest")
    logits = (logits if bias is None else logits + bias[None, None]) * scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    log_p = jax.nn.log_softmax(logits)
    target = jax.nn.one_hot(targets, V) * (1 - label_smoothing) + label_smoothing / V
    loss = -(target * log_p).sum(-1) + z_loss * jax.nn.logsumexp(logits, -1) ** 2
    log_probability = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    highest = (WEIGHT != 0) & (jnp.argmax(logits, -1) == targets)
    return jnp.where(WEIGHT != 0, loss, 0.0), jnp.where(WEIGHT != 0, log_probability, 0.0), highest


def combined(results):
    """A number that depends on both results, and on each position differently."""
    return (results[0] * TO_LOSS).sum() + (results[1] * TO_LOG).sum()


def assert_same(ours, theirs, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize("chunk", [5, 1000])
def test_values_and_gradients_equal_the_plain_loss(options, bias, chunk):
    run = functools.partial(lm_loss, targets=TARGETS, target_weight=WEIGHT, chunk=chunk, **options)
    ours = lambda h, w, b: run(h, w, bias=b)  # noqa: E731
    theirs = functools.partial(plain, **options)
    assert_same(ours(HIDDEN, WEIGHTS, bias), theirs(HIDDEN, WEIGHTS, bias))
    arguments = (0, 1) if bias is None else (0, 1, 2)
    gradients = lambda f: jax.jit(jax.grad(lambda *x: combined(f(*x)), argnums=arguments))(HIDDEN, WEIGHTS, bias)  # noqa: E731
    expected = gradients(theirs)
    assert_same(gradients(ours), expected)
    # Each alone, because what is not asked for takes another way.
    for number in arguments:
        alone = jax.jit(jax.grad(lambda *x: combined(ours(*x)), argnums=number))(HIDDEN, WEIGHTS, bias)
        np.testing.assert_allclose(alone, expected[number], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_log_probabilities_of_several_candidates(temperature, soft_cap):
    candidates = jnp.asarray(RNG.integers(0, V, (B, T, 4)), jnp.int32)
    towards = jnp.asarray(RNG.normal(size=(B, T, 4)), jnp.float32)

    def formula(hidden, weights):
        logits = jnp.einsum("BTD,VD->BTV", hidden, weights, precision="highest") * 0.7
        logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
        return jnp.where(WEIGHT[..., None] != 0, jnp.take_along_axis(jax.nn.log_softmax(logits / temperature), candidates, -1), 0.0)

    run = functools.partial(log_probabilities, candidates=candidates, target_weight=WEIGHT, scale=0.7, temperature=temperature)
    ours = functools.partial(run, soft_cap=soft_cap, chunk=4)
    assert_same(ours(HIDDEN, WEIGHTS), formula(HIDDEN, WEIGHTS))
    gradients = [jax.grad(lambda h, w, f=f: (f(h, w) * towards).sum(), argnums=(0, 1))(HIDDEN, WEIGHTS) for f in (ours, formula)]
    assert_same(*gradients)


@pytest.mark.parametrize("tensor", [1, 4])
def test_the_likeliest_tokens_of_a_teacher(tensor):
    there = WEIGHT != 0
    logits = 3.0 * jnp.tanh((jnp.einsum("BTD,VD->BTV", HIDDEN, WEIGHTS, precision="highest") + BIAS[None, None]) * 0.2 / 3.0)
    log_p, tokens = jax.lax.top_k(jax.nn.log_softmax(logits / 2.0), 5)
    with Mesh(data=8 // tensor, fsdp=1, tensor=tensor).build().active():
        options: dict[str, Any] = {"bias": BIAS, "soft_cap": 3.0, "scale": 0.2, "temperature": 2.0, "chunk": 4}
        found = top_log_probabilities(HIDDEN, WEIGHTS, WEIGHT, 5, **options)
    np.testing.assert_array_equal(found[0], jnp.where(there[..., None], tokens, 0))
    np.testing.assert_allclose(found[1], jnp.where(there[..., None], log_p, 0.0), rtol=1e-5, atol=1e-5)


def test_positions_of_weight_zero_have_no_part_even_if_not_a_number():
    there = (WEIGHT != 0)[..., None]
    run = lambda h, w, b: combined(lm_loss(h, w, TARGETS, WEIGHT, bias=b, label_smoothing=0.1, z_loss=0.1, chunk=4))  # noqa: E731
    clean, broken = (jax.value_and_grad(run, argnums=(0, 1, 2))(jnp.where(there, HIDDEN, x), WEIGHTS, BIAS) for x in (0.0, jnp.nan))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(jnp.where(there, 0.0, broken[1][0]), 0.0)


def test_a_batch_without_any_loss():
    value, gradients = jax.value_and_grad(lambda h, w: lm_loss(h, w, TARGETS, 0 * WEIGHT, z_loss=0.1).loss.sum(), argnums=(0, 1))(
        HIDDEN, WEIGHTS
    )
    assert value == 0.0 and not any(jnp.any(g) for g in gradients)


def test_bfloat16_is_close_and_a_sure_target_has_a_small_gradient():
    """The gradient of a target that is nearly certain is a small difference; rounding the target's own probability would bury it."""
    rounded = [x.astype(jnp.bfloat16) for x in (HIDDEN, WEIGHTS)]
    exact = [x.astype(jnp.float32) for x in rounded]
    run = lambda h, w, t: combined(lm_loss(h, w, t, WEIGHT))  # noqa: E731
    for targets, sure in ((TARGETS, 1.0), (jnp.argmax(jnp.einsum("BTD,VD->BTV", exact[0], exact[1]), -1), 4.0)):
        hidden = (sure * exact[0]).astype(jnp.bfloat16)
        value, ours = jax.value_and_grad(run, argnums=(0, 1))(hidden, rounded[1], targets)
        expected, theirs = jax.value_and_grad(run, argnums=(0, 1))(hidden.astype(jnp.float32), exact[1], targets)
        np.testing.assert_allclose(value, expected, rtol=1e-3)
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == jnp.bfloat16
            np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.01 * float(jnp.abs(b).max()))
    assert jax.grad(run, argnums=1)(rounded[0], WEIGHTS, TARGETS).dtype == jnp.float32


# -- what it costs --------------------------------------------------------------------------------------------------------------


def products_done(monkeypatch: pytest.MonkeyPatch, weight: jax.Array) -> int:
    """How often the logits of a chunk of 4 positions are computed in one gradient of a frozen head."""
    done = []
    original = module._logits

    def counted(*arguments):
        jax.debug.callback(lambda: done.append(1))
        return original(*arguments)

    monkeypatch.setattr(module, "_logits", counted)
    jax.block_until_ready(jax.grad(lambda h: lm_loss(h, WEIGHTS, TARGETS, weight, chunk=4).loss.sum())(HIDDEN))
    jax.effects_barrier()
    monkeypatch.undo()
    return len(done)


def test_the_head_is_computed_where_there_is_a_loss_and_nowhere_else(monkeypatch):
    for positions in (0, 1, 4, 5, B * T):
        weight = jnp.zeros((B * T,)).at[jnp.arange(positions) * 7 % (B * T)].set(1.0).reshape(B, T)
        assert products_done(monkeypatch, weight) == -(-positions // 4)


def compiled_text(argnums, **options) -> str:
    run = jax.grad(lambda h, w: lm_loss(h, w, TARGETS, WEIGHT, chunk=8, **options).loss.sum(), argnums=argnums)
    return jax.jit(run).lower(HIDDEN, WEIGHTS).compile().as_text()


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
def test_no_array_of_positions_by_vocabulary_is_ever_held(argnums):
    text = compiled_text(argnums, z_loss=0.1, label_smoothing=0.1)
    sizes = {int(np.prod([int(n) for n in shape.split(",")])) for shape in re.findall(r"\[(\d+(?:,\d+)+)\]", text)}
    assert max(sizes) == max(B * T * D, V * D, 8 * V) < B * T * V
    full = jax.jit(jax.grad(lambda h: combined(plain(h, WEIGHTS, None)))).lower(HIDDEN).compile().as_text()
    assert f"[{B},{T},{V}]" in full or f"[{B * T},{V}]" in full


def test_a_frozen_head_has_two_products_and_no_gradient():
    """Every product with the vocabulary in the program: logits and expected rows; training the head adds two; no gradient needs one."""
    products = lambda text: len(re.findall(r" dot\(|custom_call_target=\"__onednn\$matmul", text))  # noqa: E731
    frozen, trained = products(compiled_text(0)), products(compiled_text((0, 1)))
    forward = jax.jit(lambda h: lm_loss(h, WEIGHTS, TARGETS, WEIGHT, chunk=8).loss.sum()).lower(HIDDEN).compile().as_text()
    assert (products(forward), trained - frozen) == (1, 2)


# -- on a mesh ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=["plain", "everything"])
def test_every_mesh_gives_the_same_numbers(shape, options):
    """Devices have different numbers of positions with a loss, some none at all."""
    weight = WEIGHT.at[0].set(0.0).at[3].set(1.0)
    run = lambda h, w, b: lm_loss(h, w, TARGETS, weight, bias=b, chunk=2, **options)  # noqa: E731
    both = jax.value_and_grad(lambda h, w, b: (combined(run(h, w, b)), run(h, w, b)), argnums=(0, 1, 2), has_aux=True)
    expected = both(HIDDEN, WEIGHTS, BIAS)
    placement = Mesh(data=shape[0], fsdp=shape[1], tensor=shape[2]).build()
    axes = (("batch", "token", None), ("vocab", "embed"), ("vocab",))
    placed = [jax.device_put(x, placement.sharding(a, x.shape)) for x, a in zip((HIDDEN, WEIGHTS, BIAS), axes, strict=True)]
    with placement.active():
        found = jax.jit(both)(*placed)
    assert_same(found, expected)


def test_what_the_mesh_does_not_divide_is_computed_everywhere():
    placement = Mesh(data=2, fsdp=1, tensor=4).build()
    hidden, weights, targets, weight = HIDDEN[:3], WEIGHTS[:63], TARGETS[:3] % 63, WEIGHT[:3]
    run = jax.value_and_grad(lambda h, w: lm_loss(h, w, targets, weight, chunk=2).loss.sum(), argnums=(0, 1))
    with placement.active():
        found = jax.jit(run)(*placement.put((hidden, weights)))
    assert_same(found, run(hidden, weights))


def test_no_device_waits_for_another_inside_the_loop():
    """Devices of different numbers of chunks would wait forever for each other."""
    placement = Mesh(data=2, fsdp=2, tensor=2).build()
    run = jax.grad(lambda h, w: lm_loss(h, w, TARGETS, WEIGHT, chunk=2).loss.sum(), argnums=(0, 1))
    placed = jax.device_put(HIDDEN, placement.rows()), jax.device_put(WEIGHTS, placement.sharding(("vocab", "embed"), WEIGHTS.shape))
    with placement.active():
        text = jax.jit(run).lower(*placed).compile().as_text()
    bodies = [part for part in re.split(r"\n(?=%|ENTRY)", text) if re.match(r"%\S*(body|region)\S*", part)]
    assert bodies and not any(
        re.search(r"all-reduce|all-gather|reduce-scatter|collective-permute", part) for part in bodies if "dot(" in part
    )
    assert "all-reduce" in text or "reduce-scatter" in text
