"""A batch in k parts is the batch, whatever its rows weigh; batch statistics alone are what the parts give one after the other."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxtune.core.weighted import Weighted
from jaxtune.losses.cross_entropy import CrossEntropy
from jaxtune.models.family import DropoutRates
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.compile import flops, memory
from jaxtune.training.stage import Stage

ROWS, WIDTH = 32, 24


def uneven(seed: int) -> tiny.Batch:
    """Rows whose weights differ a hundredfold, and one of the four parts without any weight."""
    batch = tiny.texts(ROWS, WIDTH, seed=seed)
    batch["loss_weight"] *= np.where(np.arange(ROWS) < 16, 0.01, 1.0).astype(np.float32)
    batch["loss_weight"][2::4] = 0.0
    return batch


@functools.cache
def trained(parts: int) -> tuple[Stage, list[dict[str, Any]]]:
    stage = tiny.stage_of(optimizer=tiny.adamw(epsilon=1e-3), accumulation=parts)  # epsilon: as in test_freezing
    return stage, tiny.steps(stage, [uneven(seed) for seed in range(3)])


def test_parts_equal_the_whole() -> None:
    (whole, expected), (parts, found) = trained(1), trained(4)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other["loss"].total, one["loss"].total, rtol=1e-5)
        np.testing.assert_allclose(other["loss"].weight, one["loss"].weight, rtol=1e-6)
        np.testing.assert_allclose(other["gradient_norm"], one["gradient_norm"], rtol=1e-4)
    for key, value in whole.state.params.items():
        np.testing.assert_allclose(parts.state.params[key], value, rtol=1e-5, atol=2e-6, err_msg=key)
    assert whole.state.step == parts.state.step == 3


def test_the_mean_of_the_parts_means_would_be_another() -> None:
    """The rows are uneven enough for this test to notice."""
    batch = uneven(0)
    part_weights = batch["loss_weight"].reshape(-1, 4).sum(0)
    assert part_weights[2] == 0 and part_weights.max() > 1.5 * np.median(part_weights[part_weights > 0])


def test_parts_do_the_same_work_in_less_memory() -> None:
    def costs(parts: int) -> tuple[int, int]:
        stage, _ = trained(parts)
        placement = stage.step.placement
        arguments = (stage.state, placement.put_batch(uneven(0)), placement.put(stage.controls(0, 1.0)))
        return flops(stage.step.function, *arguments), memory(stage.step.prepare(*arguments)).temporaries

    (work, temporaries), (same_work, fewer) = costs(1), costs(4)
    assert same_work == work and fewer < 0.5 * temporaries


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(data=2, fsdp=2, tensor=2)], ids=["data 8", "2 x 2 x 2"])
def test_parts_on_eight_devices(mesh: Mesh) -> None:
    batches = [tiny.points(32, seed=seed) for seed in range(2)]
    for batch in batches:
        batch["loss_weight"] = np.random.default_rng(1).uniform(0, 2, 32).astype(np.float32)

    def run(devices: int, parts: int) -> dict[str, np.ndarray]:
        placement = mesh.build(jax.devices()) if devices == 8 else tiny.one_device()
        stage = tiny.small_stage(placement=placement, accumulation=parts)
        tiny.steps(stage, batches)
        return tiny.host(stage.state.params)

    expected = run(1, 1)
    for key, value in run(8, 2).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6, err_msg=key)


def test_each_part_has_noise_of_its_own() -> None:
    def goal(module: Any, batch: Mapping[str, jax.Array], noise: Any) -> Weighted:
        drawn = jax.random.uniform(noise.key) + 0.0 * jnp.sum(module.head.kernel[...])
        return Weighted(drawn, drawn**2)

    stage = tiny.small_stage(goal=goal, rates=DropoutRates(hidden=0.5), accumulation=2)
    first, second = (report["loss"] for report in tiny.steps(stage, [tiny.points()] * 2))
    assert abs(float(first.total) ** 2 - 2 * float(first.weight)) > 1e-3, "equal draws x, x would give (2x)^2 = 2 (x^2 + x^2)"
    assert float(first.total) != float(second.total)


# -- batch statistics -------------------------------------------------------------------------------------------------------


def image_loss(model: Any, batch: Mapping[str, jax.Array], noise: Any) -> Weighted:
    return CrossEntropy()(model.head(model(batch, noise, True), noise), batch)


def images(rows: int) -> tiny.Batch:
    random = np.random.default_rng(0)
    return {
        "image": random.normal(size=(rows, 16, 16, 3)).astype(np.float32) * np.arange(1, rows + 1, dtype=np.float32)[:, None, None, None],
        "label": (np.arange(rows) % tiny.CLASSES).astype(np.int32),
        "loss_weight": np.ones(rows, np.float32),
        "example_id": np.arange(rows, dtype=np.int32),
    }


def test_batch_statistics_are_carried_from_part_to_part() -> None:
    """Normalisation sees a part at a time, so the result is that of the parts in sequence, not that of the whole batch."""
    batch = images(8)
    parts = [{name: value[start::2] for name, value in batch.items()} for start in (0, 1)]
    stage = tiny.stage_of(name="resnet_basic", goal=image_loss, accumulation=2)
    before = tiny.host(stage.state.variables)
    (report,) = tiny.steps(stage, [batch], rate_scale=0.0)
    one_by_one = tiny.stage_of(name="resnet_basic", goal=image_loss)
    reports = tiny.steps(one_by_one, parts, rate_scale=0.0)
    assert len(before) > 4
    for key, value in one_by_one.state.variables.items():
        np.testing.assert_allclose(stage.state.variables[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
        assert not np.allclose(value, before[key])
    np.testing.assert_allclose(report["loss"].total, sum(r["loss"].total for r in reports), rtol=1e-5)
