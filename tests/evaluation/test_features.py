"""Features of a backbone: the mean over real tokens by hand, ragged ends, order and meshes, and the head plays no part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reader
import tiny
from flax import nnx

from jaxtune.evaluation import features
from jaxtune.evaluation.features import pooled_features
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import Features
from jaxtune.parallel.mesh import Mesh


class Tokens(nnx.Module):
    """Gives token vectors besides a pooled one that means nothing."""

    def __init__(self) -> None:
        self.embed = nnx.Embed(120, 8, rngs=nnx.Rngs(0))

    def __call__(self, batch: Mapping[str, jax.Array], noise: Any = None, training: bool = False) -> Features:
        tokens = self.embed(batch["tokens"])
        return Features(jnp.zeros_like(tokens[:, 0]), tokens)


def by_hand(table: np.ndarray, batches: list[tiny.Batch]) -> np.ndarray:
    rows = {}
    for batch in batches:
        for number, tokens, segments in zip(batch["example_id"], batch["tokens"], batch["segment_ids"], strict=True):
            if number >= 0:
                rows[int(number)] = table[tokens[segments > 0]].mean(0)
    return np.stack([rows[number] for number in sorted(rows)])


@pytest.mark.parametrize("mesh", [None, Mesh(fsdp=8)], ids=str)
def test_the_mean_over_real_tokens_by_example(mesh: Mesh | None) -> None:
    placement = tiny.one_device() if mesh is None else mesh.build(jax.devices()[:8])
    blueprint, values = Blueprint.split(Tokens())
    params = {key: jax.device_put(np.asarray(value), placement.replicated) for key, value in values.items()}
    batches = reader.ragged(37, 16)
    found = pooled_features(blueprint, tiny.TASK, placement, params, {}, [tiny.put(batch, placement) for batch in batches[::-1]])
    np.testing.assert_array_equal(found.ids, np.arange(37))
    np.testing.assert_allclose(found.values, by_hand(np.asarray(values["embed.embedding"]), batches), atol=1e-6)


def test_of_a_long_text_the_beginning_is_read_and_of_a_pair_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST_TOKENS", 4)
    run, params = reader.evaluator(tiny.TASK)
    batches = reader.ragged(20, 8)
    table, placed = np.asarray(params["embed.embedding"]), [tiny.put(batch, run.placement) for batch in batches]
    short = [batch | {name: batch[name][:, :4] for name in ("tokens", "segment_ids")} for batch in batches]
    found = features.pooled_features(run.blueprint, tiny.TASK, run.placement, params, {}, placed)
    np.testing.assert_allclose(found.values, by_hand(table, short), atol=1e-6)
    pairs = features.pooled_features(run.blueprint, tiny.TASK.model_copy(update={"pair": "second"}), run.placement, params, {}, placed)
    np.testing.assert_allclose(pairs.values, by_hand(table, batches), atol=1e-6)
    assert np.abs(pairs.values - found.values).max() > 0.1


def test_without_token_vectors_what_the_model_pools() -> None:
    run, params = reader.evaluator(tiny.TASK)
    batches = reader.ragged(20, 8)
    found = pooled_features(run.blueprint, tiny.TASK, run.placement, params, {}, [tiny.put(batch, run.placement) for batch in batches])
    np.testing.assert_allclose(found.values, by_hand(np.asarray(params["embed.embedding"]), batches), atol=1e-6)
    assert found.values.dtype == np.float32
