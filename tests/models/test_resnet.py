"""Batch statistics as variables: what moves them, and what must not."""

from __future__ import annotations

import jax
import numpy as np
import parity_cases as cases

from jaxtune.models.blueprint import Flat
from jaxtune.models.load import open_base

NAME = "resnet_basic"


def train(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    it = cases.loaded(NAME)

    @jax.jit
    def run(values: Flat, batch: dict[str, jax.Array]) -> tuple[jax.Array, Flat]:
        model = it.blueprint.build(values)
        return cases.forward(model, batch, training=True)["logits"], it.blueprint.changed(model)

    return jax.device_get(run(it.values, batch))


def test_padded_rows_stay_out_of_the_statistics() -> None:
    image = cases.batch_of(NAME)["image"]
    expected_logits, expected = train({"image": image})
    rubbish = np.full_like(image[:1], 50.0)
    padded = {"image": np.concatenate([image, rubbish]), "loss_weight": np.array([1, 1, 1, 0], np.float32)}
    logits, statistics = train(padded)
    np.testing.assert_allclose(logits[:3], expected_logits, atol=1e-5)
    for key, value in expected.items():
        np.testing.assert_allclose(statistics[key], value, rtol=1e-5, atol=1e-5, err_msg=key)
    _, spoiled = train({**padded, "loss_weight": np.ones(4, np.float32)})
    assert any(np.abs(spoiled[key] - value).max() > 0.1 for key, value in expected.items())


def test_an_examples_weight_is_not_its_share_of_the_statistics() -> None:
    """Weights below one speak about the loss; every real image counts the same here."""
    image = cases.batch_of(NAME)["image"]
    _, expected = train({"image": image})
    _, found = train({"image": image, "loss_weight": np.array([0.1, 1.0, 3.0], np.float32)})
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_variables_are_not_parameters() -> None:
    blueprint = cases.loaded(NAME).blueprint
    assert all(key.endswith((".norm.mean", ".norm.var")) for key in blueprint.others)
    assert not any(key.endswith((".mean", ".var")) for key in blueprint.params)
    assert len(blueprint.others) == 2 * sum(key.endswith(".norm.scale") for key in blueprint.params)


def test_depth_counts_blocks() -> None:
    family = open_base(str(cases.REFERENCES / "resnet")).family  # one block, then two
    assert family.layers == 3 and family.image_shape == (0, 0, 3) and family.width == 32
    names = ["stem.convolution.kernel", "stages.0.0.parts.1.norm.scale", "stages.1.0.shortcut.norm.bias", "stages.1.1.parts.0.norm.mean"]
    assert [family.layer_of(name) for name in (*names, "head.out.kernel")] == [0, 1, 2, 3, 4]
