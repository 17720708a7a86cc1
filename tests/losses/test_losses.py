"""Losses against formulas in NumPy and against optax; padding and class weights; finite gradients where they are easily not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtune.core.component import OneOf, load_class
from jaxtune.core.errors import ConfigError
from jaxtune.core.weighted import Weighted
from jaxtune.losses import LOSSES
from jaxtune.losses.base import Loss
from jaxtune.losses.binary_cross_entropy import BinaryCrossEntropy
from jaxtune.losses.cross_entropy import CrossEntropy
from jaxtune.losses.focal import Focal
from jaxtune.losses.regression import Huber, MeanAbsoluteError, MeanSquaredError

B, C = 9, 4
random = np.random.default_rng(0)
LOGITS = random.normal(size=(B, C)).astype(np.float32) * 3
LABEL = random.integers(0, C, B).astype(np.int32)
SOFT = random.dirichlet(np.ones(C), B).astype(np.float32)
YES_NO = (random.random((B, C)) < 0.4).astype(np.float32)
NUMBERS = random.normal(size=(B, C)).astype(np.float32)
WEIGHT = np.array([1, 1, 0, 1, 0.5, 1, 1, 0, 1], np.float32)
CLASS = (0.5, 2.0, 1.0, 3.0)

LOG_P = np.float64(LOGITS) - np.log(np.exp(np.float64(LOGITS)).sum(-1, keepdims=True))
ONE_HOT = np.eye(C)[LABEL]


def batch(**truth: np.ndarray) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in truth.items()} | {"loss_weight": jnp.asarray(WEIGHT)}


def mean(loss: Loss, **truth: np.ndarray) -> float:
    return float(loss(jnp.asarray(LOGITS), batch(**truth)).mean)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", CLASS])
def test_cross_entropy_is_pytorchs_formula(smoothing, weights):
    w = np.ones(C) if weights == "none" else np.asarray(weights)
    per_row = (1 - smoothing) * w[LABEL] * -LOG_P[np.arange(B), LABEL] + smoothing / C * (w * -LOG_P).sum(-1)
    expected = (WEIGHT * per_row).sum() / (WEIGHT * w[LABEL]).sum()
    loss = CrossEntropy(label_smoothing=smoothing, class_weights=weights)
    assert mean(loss, label=LABEL) == pytest.approx(expected, rel=1e-6)
    assert mean(loss, target=ONE_HOT) == pytest.approx(expected, rel=1e-6)
    assert loss(jnp.asarray(LOGITS), batch(label=LABEL)).total.dtype == jnp.float32


def test_cross_entropy_equals_optax():
    expected = weighted_mean(np.asarray(optax.softmax_cross_entropy_with_integer_labels(LOGITS, LABEL)), WEIGHT)
    assert mean(CrossEntropy(), label=LABEL) == pytest.approx(expected, rel=1e-6)
    expected = weighted_mean(np.asarray(optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(jnp.asarray(SOFT), 0.2))), WEIGHT)
    assert mean(CrossEntropy(label_smoothing=0.2), target=SOFT) == pytest.approx(expected, rel=1e-6)


def test_soft_targets_win_over_labels_and_are_weighed_by_class():
    per_row = -(np.asarray(CLASS) * SOFT * LOG_P).sum(-1)
    expected = (WEIGHT * per_row).sum() / (WEIGHT * (SOFT * CLASS).sum(-1)).sum()
    assert mean(CrossEntropy(class_weights=CLASS), target=SOFT, label=LABEL) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(gamma):
    values = -((1 - np.exp(LOG_P)) ** gamma) * LOG_P
    w = np.asarray(CLASS)[LABEL]
    expected = (WEIGHT * w * values[np.arange(B), LABEL]).sum() / (WEIGHT * w).sum()
    assert mean(Focal(gamma=gamma, class_weights=CLASS), label=LABEL) == pytest.approx(expected, rel=1e-5)
    expected = weighted_mean((SOFT * values).sum(-1), WEIGHT)
    assert mean(Focal(gamma=gamma), target=SOFT) == pytest.approx(expected, rel=1e-5)


def test_focal_is_discounted_cross_entropy_in_optax_for_two_classes():
    odds = LOGITS[:, 0]
    logits = jnp.asarray(np.stack([np.zeros(B, np.float32), odds], -1))
    label = (LABEL > 1).astype(np.int32)
    expected = weighted_mean(np.asarray(optax.sigmoid_focal_loss(odds, label, gamma=1.5)), WEIGHT)
    assert float(Focal(gamma=1.5)(logits, batch(label=label)).mean) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_gradient_is_finite_where_p_rounds_to_one(gamma):
    logits = jnp.asarray([[90.0, 0.0], [0.0, 90.0]])
    truth = {"label": jnp.asarray([0, 0]), "loss_weight": jnp.ones(2)}
    gradient = jax.grad(lambda x: Focal(gamma=gamma)(x, truth).total)(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, [[0, 0], [-1, 1]], atol=1e-5)


def test_binary_cross_entropy():
    p = 1 / (1 + np.exp(-np.float64(LOGITS)))
    plain = -(YES_NO * np.log(p) + (1 - YES_NO) * np.log1p(-p))
    assert mean(BinaryCrossEntropy(), target=YES_NO) == pytest.approx(weighted_mean(plain.mean(-1), WEIGHT), rel=1e-6)
    optaxs = np.asarray(optax.sigmoid_binary_cross_entropy(LOGITS, YES_NO)).mean(-1)
    assert mean(BinaryCrossEntropy(), target=YES_NO) == pytest.approx(weighted_mean(optaxs, WEIGHT), rel=1e-6)
    t = YES_NO * 0.8 + 0.1
    for given in (3.0, CLASS):
        per_row = -(np.asarray(given) * t * np.log(p) + (1 - t) * np.log1p(-p)).mean(-1)
        loss = BinaryCrossEntropy(positive_weight=given, label_smoothing=0.2)
        assert mean(loss, target=YES_NO) == pytest.approx(weighted_mean(per_row, WEIGHT), rel=1e-6)
    gradient = jax.grad(lambda x: BinaryCrossEntropy()(x, batch(target=YES_NO)).total)(jnp.asarray(LOGITS) * 1e4)
    assert np.isfinite(gradient).all()


def test_regression():
    error = np.float64(LOGITS) - NUMBERS
    small = np.minimum(np.abs(error), 0.7)
    expected = {
        MeanSquaredError(): error**2,
        MeanAbsoluteError(): np.abs(error),
        Huber(delta=0.7): 0.5 * small**2 + 0.7 * (np.abs(error) - small),
    }
    for loss, values in expected.items():
        assert mean(loss, target=NUMBERS) == pytest.approx(weighted_mean(values.mean(-1), WEIGHT), rel=1e-6)
    optaxs = np.asarray(optax.huber_loss(LOGITS, NUMBERS, delta=0.7)).mean(-1)
    assert mean(Huber(delta=0.7), target=NUMBERS) == pytest.approx(weighted_mean(optaxs, WEIGHT), rel=1e-6)


CASES = {
    "cross_entropy": (CrossEntropy(label_smoothing=0.1, class_weights=CLASS), {"label": LABEL}),
    "focal": (Focal(class_weights=CLASS), {"target": SOFT}),
    "binary_cross_entropy": (BinaryCrossEntropy(positive_weight=2.0), {"target": YES_NO}),
    "mean_squared_error": (MeanSquaredError(), {"target": NUMBERS}),
    "mean_absolute_error": (MeanAbsoluteError(), {"target": NUMBERS}),
    "huber": (Huber(delta=0.5), {"target": NUMBERS}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_padded_rows_poison_neither_loss_nor_gradient(name):
    loss, truth = CASES[name]
    padded = WEIGHT == 0
    logits = np.where(padded[:, None], np.nan, LOGITS)

    def spoil(value: np.ndarray) -> np.ndarray:
        there = ~padded.reshape(-1, *[1] * (value.ndim - 1))
        return np.where(there, value, np.asarray(np.nan if value.dtype.kind == "f" else -7)).astype(value.dtype)

    spoiled = {key: spoil(value) for key, value in truth.items()}

    def total(x: jax.Array, rows: dict) -> jax.Array:
        result = loss(x, rows)
        return result.total / result.weight

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits), batch(**spoiled))
    clean, expected = jax.value_and_grad(total)(jnp.asarray(LOGITS), batch(**truth))
    assert float(value) == float(clean)
    np.testing.assert_array_equal(gradient[padded], 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    each = loss.each(jnp.asarray(logits), batch(**spoiled))
    assert each.shape == (B,) and np.isfinite(each).all() and (np.asarray(each)[padded] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_parts_of_a_batch_add_up(name):
    loss, truth = CASES[name]
    whole = loss(jnp.asarray(LOGITS), batch(**truth))
    parts = [jax.tree.map(lambda x, s=s: x[s], batch(**truth)) for s in (slice(0, 2), slice(2, 9))]
    added = loss(jnp.asarray(LOGITS[:2]), parts[0]) + loss(jnp.asarray(LOGITS[2:]), parts[1])
    assert isinstance(added, Weighted)
    np.testing.assert_allclose([added.total, added.weight], [whole.total, whole.weight], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    loss, truth = CASES[name]
    rounded = jnp.asarray(LOGITS).astype(jnp.bfloat16)
    low, high = loss(rounded, batch(**truth)), loss(rounded.astype(jnp.float32), batch(**truth))
    assert low.total.dtype == jnp.float32 and float(low.total) == float(high.total)


def test_each_is_without_class_weights():
    each = CrossEntropy(class_weights=CLASS).each(jnp.asarray(LOGITS), batch(label=LABEL))
    np.testing.assert_allclose(each, np.where(WEIGHT > 0, -LOG_P[np.arange(B), LABEL], 0), rtol=1e-5)
    each = BinaryCrossEntropy(positive_weight=9.0).each(jnp.asarray(LOGITS), batch(target=YES_NO))
    np.testing.assert_allclose(each, BinaryCrossEntropy().each(jnp.asarray(LOGITS), batch(target=YES_NO)))


def test_a_class_that_is_masked_out_costs_nothing():
    logits = jnp.asarray([[1.0, 2.0, -jnp.inf]])
    truth = {"label": jnp.asarray([1]), "loss_weight": jnp.ones(1)}
    for loss in (CrossEntropy(), Focal()):
        value, gradient = jax.value_and_grad(lambda x, loss=loss: loss(x, truth).total)(logits)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_balanced_is_fitted_from_counts():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2, 3], [10, 5, 2, 1])
    fitted = CrossEntropy(class_weights="balanced", label_smoothing=0.1).fit(np.bincount(labels))
    np.testing.assert_allclose(fitted.class_weights, compute_class_weight("balanced", classes=np.arange(4), y=labels))
    assert fitted.label_smoothing == 0.1
    assert CrossEntropy(class_weights=CLASS).fit(np.ones(4)).class_weights == CLASS


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="none of class 1, 3"):
        CrossEntropy(class_weights="balanced").fit(np.array([3, 0, 1, 0]))
    with pytest.raises(ConfigError, match="4 numbers, but there are 3 classes"):
        Focal(class_weights=CLASS).fit(np.ones(3))
    with pytest.raises(ConfigError, match="4 numbers, but there are 3 labels"):
        BinaryCrossEntropy(positive_weight=CLASS).fit(np.ones(3))
    with pytest.raises(ConfigError, match=r"loss\.fit"):
        mean(CrossEntropy(class_weights="balanced"), label=LABEL)
    with pytest.raises(ConfigError, match='needs "label" or "target"'):
        mean(CrossEntropy())
    with pytest.raises(ConfigError, match='"target", which this task does not give'):
        mean(MeanSquaredError(), label=LABEL)
    with pytest.raises(ConfigError, match="expected the same"):
        mean(BinaryCrossEntropy(), target=YES_NO[:, :2])
    with pytest.raises(ConfigError, match="expected the same"):
        mean(CrossEntropy(), target=SOFT[:, :2])


@pytest.mark.parametrize("name", LOSSES)
def test_dump_and_load_give_an_equal_loss(name):
    loss, table = CASES[name][0], OneOf(LOSSES)
    assert table.load(table.dump(loss)) == loss
    assert table.load(name) == load_class(LOSSES[name])()
    hash(loss)
