"""Padding and packing: what stands beside a text must not change what the encoder makes of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest

from jaxtune.layers.dropout import Dropout
from jaxtune.models.load import open_base

ENCODERS = ["bert", "roberta", "distilbert", "electra"]


def features(name: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    it = cases.loaded(name)
    return jax.device_get(jax.jit(lambda values, batch: cases.forward(it.blueprint.build(values), batch))(it.values, batch))


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_nothing(name: str) -> None:
    """The second text alone and unpadded, against the recorded batch where it is padded."""
    batch, expected = cases.batch_of(name), cases.run(name)[0]
    length = int(batch["segment_ids"][1].sum())
    alone = features(name, {key: value[1:2, :length] for key, value in batch.items()})
    np.testing.assert_allclose(alone["logits"][0], expected["logits"][1], atol=2e-6)
    np.testing.assert_allclose(alone["tokens"][0], expected["tokens"][1, :length], atol=5e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_texts_do_not_see_each_other(name: str) -> None:
    batch, expected = cases.batch_of(name), cases.run(name)[0]
    lengths = batch["segment_ids"].sum(1)[1:]  # the second and third text fit into one row of 16
    assert lengths.sum() < 16
    rows = [(row, int(length)) for row, length in zip((1, 2), lengths, strict=True)]

    def pack(*parts: np.ndarray) -> np.ndarray:
        joined = np.concatenate(parts)
        return np.pad(joined, (0, 16 - len(joined)))[None].astype(np.int32)

    packed = {key: pack(*(value[row, :length] for row, length in rows)) for key, value in batch.items()}
    packed["segment_ids"] = pack(*(np.full(length, number) for number, (_, length) in enumerate(rows, 1)))
    packed["positions"] = pack(*(np.arange(length) for _, length in rows))
    found, start = features(name, packed)["tokens"][0], 0
    for row, length in rows:
        np.testing.assert_allclose(found[start : start + length], expected["tokens"][row, :length], atol=5e-6)
        start += length


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_of_padding_alone_stays_finite(name: str) -> None:
    """The rows that fill up a last batch: no real token, no NaN, also in the gradient."""
    it, batch = cases.loaded(name), {key: np.zeros_like(value[:1]) for key, value in cases.batch_of(name).items()}

    @jax.jit
    def gradients(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return jax.grad(lambda values: cases.forward(it.blueprint.build(values), batch)["logits"].sum())(values)

    assert all(np.isfinite(value).all() for value in jax.device_get(gradients(it.values)).values())


@pytest.mark.parametrize(
    ("name", "longest"), [("bert", 24), ("roberta", 16), ("roberta_pad_three", 16), ("distilbert", 24), ("electra", 24)]
)
def test_longest_text(name: str, longest: int) -> None:
    assert open_base(str(cases.REFERENCES / name)).family.max_tokens == longest


@pytest.mark.parametrize("name", [*ENCODERS, "vit", "deit"])
def test_each_dropout_rate_acts(name: str) -> None:
    it, batch = cases.loaded(name), cases.batch_of(name)

    @jax.jit
    def logits(hidden: jax.Array, attention: jax.Array, head: jax.Array, seed: jax.Array) -> jax.Array:
        noise = Dropout(jax.random.key(seed), hidden, attention, head)
        model = it.blueprint.build(it.values)
        return model.head(model(batch, noise, True), noise)

    expected, zero, some = cases.run(name)[0]["logits"], jnp.float32(0), jnp.float32(0.3)
    np.testing.assert_allclose(logits(zero, zero, zero, 0), expected, atol=2e-6)
    each = [logits(some, zero, zero, 0), logits(zero, some, zero, 0), logits(zero, zero, some, 0), logits(some, some, some, 0)]
    for number, found in enumerate(each):
        assert np.abs(found - expected).max() > 1e-3, f"rate {number} does nothing"
    np.testing.assert_array_equal(each[-1], logits(some, some, some, 0))
    assert np.abs(each[-1] - logits(some, some, some, 1)).max() > 1e-3, "the key does nothing"
