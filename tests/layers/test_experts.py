"""A mixture of experts against a loop over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.experts import Experts, Load

COUNT, CHOSEN, WIDTH, INNER = 5, 2, 6, 4


def made(normalise: bool) -> Experts:
    rngs = nnx.Rngs(params=jax.random.key(1))
    return Experts(WIDTH, INNER, count=COUNT, chosen=CHOSEN, normalise=normalise, activation="silu", deviation=1.0, rngs=rngs)


def by_hand(layer: Experts, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gate, up, down, router = (
        np.asarray(p[...], np.float64) for p in (layer.experts.gate, layer.experts.up, layer.experts.down, layer.router.kernel)
    )
    out, chosen, total = np.zeros_like(x, dtype=np.float64), np.zeros(COUNT), np.zeros(COUNT)
    for place in np.ndindex(x.shape[:2]):
        scores = x[place] @ router
        probability = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        best = np.argsort(-probability)[:CHOSEN]
        weights = probability[best] / (probability[best].sum() if layer.normalise else 1.0)
        for weight, expert in zip(weights, best, strict=True):
            g = x[place] @ gate[expert]
            out[place] += weight * ((g / (1 + np.exp(-g)) * (x[place] @ up[expert])) @ down[expert])
        chosen[best] += 1
        total += probability
    return out, chosen, total


@pytest.mark.parametrize("normalise", [False, True])
def test_it_is_the_sum_over_the_chosen(normalise: bool) -> None:
    layer, x = made(normalise), np.random.default_rng(0).normal(size=(2, 7, WIDTH)).astype(np.float32)
    segment_ids = np.ones((2, 7), np.int32)
    found, load = layer(x, segment_ids, Load.none(COUNT))
    expected, chosen, total = by_hand(layer, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(load.chosen, chosen)
    np.testing.assert_allclose(load.probability, total, rtol=1e-5)
    assert load.imbalance() == pytest.approx(COUNT * (chosen / 14 * total / 14).sum(), rel=1e-5)


def test_padding_counts_nowhere_and_loads_add_up() -> None:
    layer, x = made(True), np.random.default_rng(2).normal(size=(1, 6, WIDTH)).astype(np.float32)
    _, part = layer(x[:, :4], np.ones((1, 4), np.int32), Load.none(COUNT))
    _, padded = layer(x, np.array([[1, 1, 1, 1, 0, 0]], np.int32), Load.none(COUNT))
    for one, other in zip(part, padded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    _, twice = layer(x[:, :4], np.ones((1, 4), np.int32), part)
    assert twice.tokens == 8 and twice.imbalance() == pytest.approx(float(part.imbalance()), rel=1e-5)


def test_gradients_reach_the_chosen_alone() -> None:
    layer, x = made(True), jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, WIDTH)), jnp.float32)
    graph, state = nnx.split(layer)

    def loss(state: nnx.State, x: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(x, jnp.ones((1, 1), jnp.int32), Load.none(COUNT))[0])

    gradients = jax.grad(loss)(state, x)
    touched = np.abs(np.asarray(gradients["experts"]["up"].get_value())).sum((1, 2)) > 0
    assert touched.sum() == CHOSEN and np.abs(np.asarray(gradients["router"]["kernel"].get_value())).max() > 0
