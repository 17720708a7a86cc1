"""Perplexity and token accuracy over batches of any size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.metrics.language import Perplexity, TokenAccuracy


def over(metric, rows, size):
    state = metric.start(0)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        part = np.concatenate([part, np.full((size - len(part), 4), np.nan)])  # padded rows hold anything
        loss, right, tokens, real = jnp.asarray(part.T, jnp.float32)
        real = jnp.nan_to_num(real)
        state = jax.jit(metric.update)(state, {"total_loss": loss, "right_tokens": right, "tokens": tokens}, {"loss_weight": real})
    return metric.compute(state)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_token_counts_the_same(size):
    random = np.random.default_rng(0)
    tokens = random.integers(1, 20, 7)
    losses = [random.gamma(2.0, 1.0, count) for count in tokens]
    right = [random.integers(0, 2, count) for count in tokens]
    rows = np.array([[each.sum(), hits.sum(), count, 1] for each, hits, count in zip(losses, right, tokens, strict=True)])
    assert over(Perplexity(), rows, size)["perplexity"] == pytest.approx(math.exp(np.concatenate(losses).mean()), rel=1e-5)
    assert over(TokenAccuracy(), rows, size)["token_accuracy"] == pytest.approx(np.concatenate(right).mean(), rel=1e-6)


def test_nothing_and_too_much():
    assert math.isnan(over(TokenAccuracy(), np.zeros((0, 4)), 2)["token_accuracy"])
    assert over(Perplexity(), np.array([[1e6, 0, 1, 1]]), 1)["perplexity"] == math.inf
