"""One step against arithmetic by hand: mean gradient, clipping, rate scales, averages, dropout, and steps that are not finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxtune.core.weighted import Weighted
from jaxtune.layers import stack
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.family import DropoutRates
from jaxtune.training.optimizers.any_optax import AnyOptax
from jaxtune.training.schedules.shapes import Constant
from jaxtune.training.stage import Depth
from jaxtune.training.step import spread

PLAIN = {"clip_norm": None, "momentum": None}


def gradient_by_hand(stage: Any, batch: tiny.Batch, goal: Any = tiny.small_loss) -> Flat:
    """Of the weighted mean."""

    def mean(params: Flat) -> jax.Array:
        loss = goal(stage.blueprint.build(stage.state.frozen, stage.state.variables, params), batch, None)
        return loss.total / loss.weight

    return jax.device_get(jax.jit(jax.grad(mean))(stage.state.trainable))


def norm_of(gradients: Flat) -> float:
    return float(np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients.values())))


def batch_with_weights() -> tiny.Batch:
    batch = tiny.points(8)
    batch["loss_weight"] = np.float32([0.1, 2, 1, 0, 0.5, 3, 1, 0])
    return batch


def test_the_gradient_is_that_of_the_weighted_mean() -> None:
    stage = tiny.small_stage(optimizer=tiny.sgd(0.1, **PLAIN))
    batch, before = batch_with_weights(), tiny.host(stage.state.trainable)
    gradients = gradient_by_hand(stage, batch)
    (report,) = tiny.steps(stage, [batch])
    for key, old in before.items():
        np.testing.assert_allclose(stage.state.trainable[key], old - 0.1 * gradients[key], rtol=1e-5, atol=1e-7, err_msg=key)
    np.testing.assert_allclose(report["gradient_norm"], norm_of(gradients), rtol=1e-5)
    np.testing.assert_allclose(report["loss"].weight, batch["loss_weight"].sum(), rtol=1e-6)
    assert report["finite"] and report["skipped_in_a_row"] == 0 and stage.state.step == 1


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_clipping_is_over_everything_and_before_the_rate(share: float) -> None:
    batch = batch_with_weights()
    probe = tiny.small_stage(optimizer=tiny.sgd(0.1, **PLAIN))
    gradients = gradient_by_hand(probe, batch)
    norm = norm_of(gradients)
    stage = tiny.small_stage(optimizer=tiny.sgd(0.1, momentum=None, clip_norm=share * norm))
    before = tiny.host(stage.state.trainable)
    (report,) = tiny.steps(stage, [batch])
    np.testing.assert_allclose(report["gradient_norm"], norm, rtol=1e-5, err_msg="the norm is told as it was")
    for key, old in before.items():
        np.testing.assert_allclose(stage.state.trainable[key], old - 0.1 * min(1, share) * gradients[key], rtol=1e-5, atol=1e-7)


def test_rate_scales_by_layer() -> None:
    module = tiny.tower()
    optimizer = tiny.sgd(0.1, layer_decay=0.5, head_rate=3.0, **PLAIN)
    stage = tiny.small_stage(module=module, optimizer=optimizer, depth=Depth(tiny.tower_depth, tiny.Tower.LAYERS))
    batch, before = tiny.points(), tiny.host(stage.state.trainable)
    gradients = gradient_by_hand(stage, batch)
    tiny.steps(stage, [batch], rate_scale=0.5)
    layers = 0.5 ** np.arange(5, 0, -1, dtype=np.float32)
    scales = {"body.bias": 0.5**6, "body.kernel": 0.5**6, "head.bias": 3.0, "head.kernel": 3.0}
    scales |= {"layers.0-4.dense.kernel": layers[:, None, None], "layers.0-4.dense.bias": layers[:, None]}
    assert scales.keys() == before.keys()
    for key, old in before.items():
        np.testing.assert_allclose(stage.state.trainable[key], old - 0.05 * scales[key] * gradients[key], rtol=1e-5, atol=1e-7, err_msg=key)


def test_spread_meets_its_update() -> None:
    update = jnp.ones((3, 2, 2), jnp.bfloat16)
    assert spread(jnp.float32(2.0), update).shape == (1, 1, 1)
    scale = spread(jnp.arange(3.0), update)
    assert scale.shape == (3, 1, 1) and scale.dtype == update.dtype


def test_the_average_follows_its_formula() -> None:
    stage = tiny.small_stage(["head.*"], average=0.75)
    average = tiny.host(stage.state.trainable)
    tiny.equal(stage.state.average, average)
    for number in range(3):
        tiny.steps(stage, [tiny.points(seed=number)], first=number)
        average = {key: 0.75 * old + 0.25 * np.asarray(stage.state.trainable[key]) for key, old in average.items()}
    for key, value in average.items():
        np.testing.assert_allclose(stage.state.average[key], value, rtol=1e-5, atol=1e-7)
        assert not np.allclose(value, stage.state.trainable[key], rtol=1e-3)
    evaluated = stage.state.evaluated
    tiny.equal({key: evaluated[key] for key in average}, stage.state.average)
    assert evaluated.keys() == stage.state.params.keys()
    module = stage.module
    np.testing.assert_array_equal(module.head.kernel[...], stage.state.average["head.kernel"])  # type: ignore[attr-defined]


def stage_of(rates: DropoutRates | None) -> Any:
    return tiny.small_stage(module=tiny.tower(), rates=rates)


def trained(rates: DropoutRates | None, count: int = 2) -> tuple[dict[str, np.ndarray], list[Any]]:
    stage = stage_of(rates)
    reports = tiny.steps(stage, [tiny.points(32)] * count)
    return tiny.host(stage.state.params), [float(report["loss"].mean) for report in reports]


def test_dropout_off_equals_rate_zero() -> None:
    off, zero = trained(None)[0], trained(DropoutRates())[0]
    for key, value in off.items():
        np.testing.assert_allclose(zero[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


def test_dropout_changes_with_the_step_and_repeats_with_the_seed() -> None:
    rates = DropoutRates(hidden=0.5)
    stage = stage_of(rates)
    frozen_rate = {"rate_scale": 0.0}
    first, second = (float(r["loss"].mean) for r in tiny.steps(stage, [tiny.points(32)] * 2, **frozen_rate))
    assert first != second, "the same parameters and rows, another mask"
    a, b = trained(rates), trained(rates)
    tiny.equal(a[0], b[0])
    assert a[1] == b[1] and abs(a[1][0] - trained(None)[1][0]) > 1e-3


def test_dropout_is_not_in_the_program_when_off() -> None:
    def shifts(rates: DropoutRates | None) -> int:
        """Bit shifts: the masks are hashes, and nothing else in the step shifts bits."""
        stage = stage_of(rates)
        return str(jax.make_jaxpr(stage.step.function)(stage.state, tiny.points(), stage.controls(0, 1.0))).count("shift_right_logical")

    assert shifts(None) == 0 < shifts(DropoutRates())


# -- steps that are not finite ----------------------------------------------------------------------------------------------


class Normed(nnx.Module):
    """Batch statistics, so that the guard has variables to protect."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(4, tiny.CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, noise: Dropout | None = None) -> jax.Array:
        return self.head(self.norm(x))


def guarded() -> Any:
    return tiny.small_stage(module=Normed(rngs=nnx.Rngs(0)), average=0.9)


def spoilt(value: float) -> tiny.Batch:
    batch = tiny.points(seed=9)
    batch["x"][3, 1] = value
    return batch


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_bad_example_changes_nothing(value: float) -> None:
    stage = guarded()
    tiny.steps(stage, [tiny.points(seed=1)])
    before = tiny.host(stage.state)
    reports = tiny.steps(stage, [spoilt(value), spoilt(value)], first=1)
    after = tiny.host(stage.state)
    for field in fields(before):
        if field.name not in ("step", "skipped", "skipped_in_a_row"):
            tiny.trees_equal(getattr(after, field.name), getattr(before, field.name))
    assert (after.step, after.skipped, after.skipped_in_a_row) == (3, 2, 2)
    assert [bool(r["finite"]) for r in reports] == [False, False]
    assert [int(r["skipped_in_a_row"]) for r in reports] == [1, 2]
    (report,) = tiny.steps(stage, [tiny.points(seed=2)], first=3)
    after = tiny.host(stage.state)
    assert report["finite"] and (after.step, after.skipped, after.skipped_in_a_row) == (4, 2, 0)
    for name in ("trainable", "average", "variables"):
        assert all(np.isfinite(v).all() and not np.array_equal(v, getattr(before, name)[k]) for k, v in getattr(after, name).items())


def test_the_steps_around_a_skipped_one_are_as_without_it() -> None:
    """The optimizer does not count it."""
    with_bad, without = guarded(), guarded()
    tiny.steps(with_bad, [tiny.points(seed=1), spoilt(np.nan), tiny.points(seed=2)])
    tiny.steps(without, [tiny.points(seed=1), tiny.points(seed=2)])
    tiny.equal(with_bad.state.params, without.state.params)
    tiny.trees_equal(with_bad.state.opt_state, without.state.opt_state)


def test_a_bad_gradient_of_a_finite_loss_is_noticed() -> None:
    def goal(module: Any, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
        bias = module.head.bias[...]
        distance = jnp.sum(jnp.square(bias - jax.lax.stop_gradient(bias)))
        loss = tiny.small_loss(module, batch, noise)
        return Weighted(loss.total + jnp.sqrt(distance), loss.weight)

    stage = tiny.small_stage(goal=goal)
    before = tiny.host(stage.state.params)
    (report,) = tiny.steps(stage, [tiny.points()])
    assert np.isfinite(report["loss"].total) and not np.isfinite(report["gradient_norm"]) and not report["finite"]
    tiny.equal(stage.state.params, before)


def test_a_bad_row_without_weight_is_no_bad_row() -> None:
    stage = tiny.small_stage()
    batch = spoilt(np.nan)
    batch["loss_weight"][3] = 0.0
    (report,) = tiny.steps(stage, [batch])
    assert not report["finite"], "the loss leaves the row out, but the product in front of it does not: 0 x NaN"
    batch["x"][3] = 1e6
    (report,) = tiny.steps(stage, [batch], first=1)
    assert report["finite"]


# -- the rest of the step ---------------------------------------------------------------------------------------------------


def test_batch_statistics_move() -> None:
    stage, batch = guarded(), tiny.points(16)
    tiny.steps(stage, [batch])
    np.testing.assert_allclose(stage.state.variables["norm.mean"], 0.5 * batch["x"].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stage.state.variables["norm.var"], 0.5 + 0.5 * batch["x"].var(0), rtol=1e-4)


def test_augmentation_sees_the_batch_and_another_key_each_step() -> None:
    def shift(batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return {**batch, "loss_weight": batch["loss_weight"] * jax.random.uniform(key)}

    stage = tiny.small_stage(augment=shift)
    weights = [float(report["loss"].weight) for report in tiny.steps(stage, [tiny.points()] * 3)]
    assert len(set(weights)) == 3 and all(0 < w < 8 for w in weights)
    again = tiny.small_stage(augment=shift)
    assert weights == [float(report["loss"].weight) for report in tiny.steps(again, [tiny.points()] * 3)]
    other = tiny.small_stage(augment=shift, seed=1)
    assert weights[0] != float(tiny.steps(other, [tiny.points()])[0]["loss"].weight)


def test_a_batch_that_weighs_nothing_moves_nothing() -> None:
    stage = tiny.small_stage(optimizer=tiny.sgd(**PLAIN))
    before, batch = tiny.host(stage.state.params), tiny.points()
    batch["loss_weight"][:] = 0.0
    (report,) = tiny.steps(stage, [batch])
    assert report["gradient_norm"] == 0 and report["loss"].weight == 0 and report["finite"]
    tiny.equal(stage.state.params, before)


def test_an_optimizer_that_keeps_the_first_parameters() -> None:
    """Its state must not share memory with the parameters, which are given away at every step."""
    stage = tiny.small_stage(optimizer=AnyOptax(name="prodigy", schedule=Constant(rate=1.0)))
    before = tiny.host(stage.state.params)
    tiny.steps(stage, [tiny.points(seed=s) for s in range(3)])
    assert not np.array_equal(stage.state.params["head.kernel"], before["head.kernel"])


def test_stacks_cut_scanned_and_unrolled_train_alike() -> None:
    def run(options: StackOptions) -> dict[str, np.ndarray]:
        values = Blueprint.split(tiny.tower())[1]
        stage = tiny.small_stage(module=tiny.tower(options), rates=DropoutRates(hidden=0.3))
        tiny.steps(stage, [tiny.points(seed=s) for s in range(4)])
        return stack.recut(tiny.host(stage.state.params), list(values), lambda x, a, b: x[a:b], np.concatenate)

    expected = run(StackOptions(scan=True))
    for options in (StackOptions(scan=False), StackOptions(scan=True, cuts=(2, 3)), StackOptions(scan=True, remat="block")):
        found = run(options)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=f"{key} {options}")
