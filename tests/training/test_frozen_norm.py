"""Batch norms of frozen layers keep their running statistics and use them, so a frozen layer computes the same in training and evaluation."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune.core.weighted import Weighted
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.stage import build_stage

RESNET = Path(__file__).parents[1] / "references" / "resnet"


def test_statistics_of_frozen_norms_stay() -> None:
    base = open_base(str(RESNET))
    placement = Mesh().build(jax.devices()[:1])
    table = Table(base.family.rows())
    make = lambda cuts: maker(base.family, 3, seed=0, options=StackOptions(cuts), dtype=jnp.float32)  # noqa: E731
    blueprint = Blueprint.of(make(()))
    placed = shardings(blueprint, table, placement)
    flat = load(base, blueprint, table, plan_load(base, blueprint, table, True), make(()), placed, lambda key: jnp.float32)

    def loss(module, batch, noise):
        logits = module.head(module(batch, noise, True))
        return Weighted.of(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), jnp.ones(4))

    last = max(key.split(".")[1] for key in blueprint.params if key.startswith("stages."))
    stage = build_stage(
        make, {k: flat[k] for k in blueprint.params}, {k: flat[k] for k in blueprint.others},
        lambda b: shardings(b, table, placement), loss, optax.sgd(0.1), placement,
        patterns=["head.*", f"stages.{last}.*"], steps=1, seed=0,
    )  # fmt: skip
    before = jax.tree.map(np.asarray, stage.state.variables)
    random = np.random.default_rng(0)
    shape = base.family.image_shape
    assert shape is not None
    batch = {"image": jnp.asarray(random.normal(size=(4, 16, 16, shape[2])), jnp.float32), "label": jnp.asarray([0, 1, 2, 0], jnp.int32)}
    state, _ = stage.step(stage.state, batch, placement.put(stage.controls(0, 1.0)))
    for key, value in state.variables.items():
        moved = not np.array_equal(before[key], np.asarray(value))
        assert moved == key.startswith(f"stages.{last}."), key
