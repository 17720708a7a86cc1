"""Eight devices compute what one computes: loss, gradients, updated parameters and evaluation, on four meshes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from jaxtune.evaluation.evaluate import Evaluator
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.stage import Stage
from jaxtune.training.state import stored_key

MESHES = {"data 8": Mesh(), "fsdp 8": Mesh(fsdp=8), "tensor 4 x data 2": Mesh(tensor=4), "2 x 2 x 2": Mesh(data=2, fsdp=2, tensor=2)}
every = pytest.mark.parametrize("mesh", MESHES)
TOLERANCE = 1e-5
BATCHES = [tiny.texts(16, 12, seed=seed) for seed in range(2)]


@functools.cache
def trained(mesh: str | None) -> tuple[Stage, list[dict[str, Any]]]:
    """Two steps. epsilon: as in test_freezing."""
    placement = tiny.one_device() if mesh is None else MESHES[mesh].build(jax.devices()[:8])
    stage = tiny.stage_of(placement=placement, optimizer=tiny.adamw(epsilon=1e-3, layer_decay=0.9))
    return stage, tiny.steps(stage, BATCHES)


def first_moments(stage: Stage) -> dict[str, np.ndarray]:
    """Sums of gradients: 0.09 of the first and 0.1 of the second."""
    leaves = jax.tree_util.tree_leaves_with_path(stage.state.opt_state)
    return {stored_key(path, stage.state.trainable) or "": np.asarray(leaf) for path, leaf in leaves if "mu" in jax.tree_util.keystr(path)}


def distances(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Relative, array by array, in the Euclidean norm."""
    assert found.keys() == expected.keys()
    pairs = {key: (np.asarray(found[key]), np.asarray(expected[key])) for key in expected}
    return {key: float(np.linalg.norm(a - b) / np.linalg.norm(b)) for key, (a, b) in pairs.items()}


@every
def test_loss_and_gradient_norm(mesh: str) -> None:
    for one, eight in zip(trained(None)[1], trained(mesh)[1], strict=True):
        np.testing.assert_allclose(eight["loss"].total, one["loss"].total, rtol=TOLERANCE)
        np.testing.assert_allclose(eight["loss"].weight, one["loss"].weight, rtol=TOLERANCE)
        np.testing.assert_allclose(eight["gradient_norm"], one["gradient_norm"], rtol=TOLERANCE)


@every
def test_gradients(mesh: str) -> None:
    one, eight = first_moments(trained(None)[0]), first_moments(trained(mesh)[0])
    whole = float(np.sqrt(sum(np.square(value).sum() for value in one.values())))
    assert len(one) > 20
    for key in [key for key in one if key.endswith("attn.k.bias")]:  # zero but for rounding
        assert np.linalg.norm(eight.pop(key) - one.pop(key)) <= TOLERANCE * whole
    found = distances(eight, one)
    assert max(found.values()) <= TOLERANCE, found


@every
def test_updated_parameters(mesh: str) -> None:
    one, eight = trained(None)[0].state.params, trained(mesh)[0].state.params
    found = distances(eight, one)
    assert max(found.values()) <= TOLERANCE, found
    start = tiny.recorded().values
    assert all(not np.array_equal(one[key], start[key]) for key in one)


@every
def test_arrays_stay_where_they_were(mesh: str) -> None:
    stage, _ = trained(mesh)
    for key, value in stage.state.trainable.items():
        assert value.sharding == stage.step.state_shardings.trainable[key]
    split = [key for key, value in stage.state.trainable.items() if not value.sharding.is_fully_replicated]
    kernels = [key for key in stage.state.trainable if key.startswith("layers") and key.endswith("kernel")]
    assert (not split) if mesh == "data 8" else set(kernels) <= set(split)
    assert stage.step.compilations == 1


def test_evaluation_of_sharded_parameters() -> None:
    """The other meshes are in tests/evaluation, with a smaller model."""

    def evaluated(mesh: str | None) -> Any:
        stage, _ = trained(mesh)
        placement = stage.step.placement
        evaluator = Evaluator(stage.blueprint, tiny.TASK, tiny.CLASSES, placement)
        return evaluator(stage.state.params, stage.state.variables, [tiny.put(batch, placement) for batch in BATCHES], keep=True)

    one, eight = evaluated(None), evaluated("2 x 2 x 2")
    assert one.metrics.keys() == eight.metrics.keys()
    for name, value in one.metrics.items():
        np.testing.assert_allclose(eight.metrics[name], value, rtol=TOLERANCE, err_msg=name)
    np.testing.assert_array_equal(eight.predictions.ids, one.predictions.ids)
    np.testing.assert_allclose(eight.predictions.probabilities, one.predictions.probabilities, atol=TOLERANCE)
