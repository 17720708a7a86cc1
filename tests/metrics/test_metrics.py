"""Every metric against scikit-learn, on ragged padded batches merged over several updates."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

from jaxtune.core.component import load_class
from jaxtune.core.errors import ConfigError
from jaxtune.metrics import METRICS
from jaxtune.metrics.accuracy import Accuracy
from jaxtune.metrics.auc import Auc, log_odds
from jaxtune.metrics.base import Metric, better
from jaxtune.metrics.calibration import ExpectedCalibrationError
from jaxtune.metrics.f1 import F1
from jaxtune.metrics.loss import MeanLoss
from jaxtune.metrics.matthews import Matthews
from jaxtune.metrics.regression import R2, MeanAbsoluteError, MeanSquaredError, Pearson
from jaxtune.metrics.sums import add_sum, count, read_count, read_sum, zero_count, zero_sum

ROWS = 37  # per padded batch


def softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


def run(metric: Metric, logits: np.ndarray, *, padding: float = np.nan, **truth: np.ndarray) -> dict:
    """The metric over unevenly filled batches of ROWS; padded rows hold NaN logits and targets, and a label that would count."""
    probabilities = sigmoid(logits) if "target" in truth else softmax(logits)
    loss = np.arange(len(logits), dtype=np.float32)
    update = jax.jit(metric.update)
    state = jax.jit(lambda: metric.start(logits.shape[-1]))()
    start = 0
    for size in [37, 1, 20, 0, 37, 13] * (len(logits) // 100 + 1):
        rows = slice(start, min(start + size, len(logits)))
        start = rows.stop

        def padded(values: np.ndarray, filling: float, rows: slice = rows) -> jax.Array:
            full = np.full((ROWS, *values.shape[1:]), filling, values.dtype)
            full[: rows.stop - rows.start] = values[rows]
            return jnp.asarray(full)

        weight = padded(np.ones(len(logits), np.float32), 0.0)
        batch = {name: padded(value, 0 if name == "label" else padding) for name, value in truth.items()}
        predictions = {
            "logits": padded(logits, padding),
            "probabilities": padded(probabilities.astype(np.float32), padding),
            "loss": padded(loss, padding),
        }
        state = update(state, predictions, batch | {"loss_weight": weight})
    assert start == len(logits), "the test must feed every row"
    return metric.compute(jax.device_get(state))


@pytest.fixture(params=[2, 5])
def single(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(request.param)
    label = random.choice(request.param, 400, p=np.arange(1, request.param + 1) / sum(range(request.param + 1))).astype(np.int32)
    logits = random.normal(size=(400, request.param)).astype(np.float32) * 2
    logits[np.arange(400), label] += 1.0
    return logits, label


@pytest.fixture
def multi() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    target = (random.random((300, 4)) < [0.5, 0.1, 0.8, 0.3]).astype(np.float32)
    return (random.normal(size=(300, 4)) + 2 * target - 1).astype(np.float32), target


def test_single_label_counts(single):
    logits, label = single
    guess = logits.argmax(-1)
    assert run(Accuracy(), logits, label=label) == {"accuracy": reference.accuracy_score(label, guess)}
    assert run(Matthews(), logits, label=label)["matthews"] == pytest.approx(reference.matthews_corrcoef(label, guess), abs=1e-12)
    got = run(F1(), logits, label=label)
    for key, average in {"f1": "macro", "f1_micro": "micro", "f1_weighted": "weighted"}.items():
        assert got[key] == pytest.approx(reference.f1_score(label, guess, average=average), abs=1e-12)
    precision, recall, each, support = reference.precision_recall_fscore_support(label, guess)
    np.testing.assert_allclose(got["precision_per_class"], precision)
    np.testing.assert_allclose(got["recall_per_class"], recall)
    np.testing.assert_allclose(got["f1_per_class"], each)
    assert got["support"] == support.tolist()


def test_multi_label_counts(multi):
    logits, target = multi
    guess = sigmoid(logits) > 0.5
    got = run(Accuracy(), logits, target=target)
    assert got["accuracy"] == reference.accuracy_score(target, guess)
    assert got["label_accuracy"] == pytest.approx((guess == (target > 0.5)).mean(), abs=1e-12)
    got = run(F1(), logits, target=target)
    for key, average in {"f1": "macro", "f1_micro": "micro", "f1_weighted": "weighted"}.items():
        assert got[key] == pytest.approx(reference.f1_score(target, guess, average=average), abs=1e-12)
    each = [reference.matthews_corrcoef(target[:, i], guess[:, i]) for i in range(4)]
    assert run(Matthews(), logits, target=target)["matthews"] == pytest.approx(np.mean(each), abs=1e-12)


def test_classes_that_never_occur_are_left_out_of_the_macro_average_as_in_sklearn():
    label = np.array([0, 0, 1, 1, 1], np.int32)
    logits = np.eye(4, dtype=np.float32)[[0, 1, 1, 1, 0]]
    guess = logits.argmax(-1)
    got = run(F1(), logits, label=label)
    assert got["f1"] == pytest.approx(reference.f1_score(label, guess, average="macro"))
    assert got["f1_per_class"][2:] == [0.0, 0.0]
    absent = np.zeros((5, 2), np.float32)
    absent[:, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference.f1_score(absent, absent, average="macro", zero_division=0)
    assert run(F1(), 10 * absent - 5, target=absent)["f1"] == expected == 0.5


def test_auc_is_within_its_bound_of_the_exact_one(single):
    logits, label = single
    scores = softmax(logits)
    exact = reference.roc_auc_score(label, scores[:, 1] if logits.shape[1] == 2 else scores, multi_class="ovr")
    metric = Auc()
    state = metric.update(
        metric.start(logits.shape[1]), {"logits": jnp.asarray(logits)}, {"label": jnp.asarray(label), "loss_weight": jnp.ones(400)}
    )
    bound = metric.error_bound(jax.device_get(state))
    assert bound < 1e-3
    assert run(metric, logits, label=label)["auc"] == pytest.approx(exact, abs=bound + 1e-9)
    coarse = Auc(bins=16)
    state = coarse.update(
        coarse.start(logits.shape[1]), {"logits": jnp.asarray(logits)}, {"label": jnp.asarray(label), "loss_weight": jnp.ones(400)}
    )
    assert run(coarse, logits, label=label)["auc"] == pytest.approx(exact, abs=coarse.error_bound(jax.device_get(state)))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 0.0), (6.0, 20.0)])
def test_auc_holds_for_untrained_and_for_saturated_models(scale, shift):
    random = np.random.default_rng(0)
    label = (random.random(2000) < 0.3).astype(np.int32)
    odds = scale * (random.normal(size=2000) + label) + shift
    logits = np.stack([np.zeros(2000), odds], -1).astype(np.float32)
    exact = reference.roc_auc_score(label, odds)
    assert run(Auc(), logits, label=label)["auc"] == pytest.approx(exact, abs=5e-3 if scale < 1 else 5e-4)


def test_auc_of_labels_and_of_classes_that_are_missing(multi):
    logits, target = multi
    exact = reference.roc_auc_score(target, logits, average="macro")
    assert run(Auc(), logits, target=target)["auc"] == pytest.approx(exact, abs=5e-4)
    target = target.copy()
    target[:, 0] = 1
    exact = np.mean([reference.roc_auc_score(target[:, i], logits[:, i]) for i in (1, 2, 3)])
    assert run(Auc(), logits, target=target)["auc"] == pytest.approx(exact, abs=5e-4)
    assert np.isnan(run(Auc(), logits, target=np.ones_like(target))["auc"])


def test_log_odds_where_probabilities_round_to_one():
    logits = np.array([[40.0, 0.0, 1.0], [0.0, -30.0, 30.0], [1.0, 1.0, 1.0]], np.float32)
    p = softmax(logits)
    rest = np.stack([np.delete(p, i, 1).sum(1) for i in range(3)], 1)
    np.testing.assert_allclose(log_odds(jnp.asarray(logits)), np.log(p) - np.log(rest), rtol=1e-5, atol=1e-6)


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    total = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return total / len(confidence)


def test_calibration(single, multi):
    logits, label = single
    p = softmax(logits).astype(np.float32)
    expected = calibration(p.max(-1), p.argmax(-1) == label, 15)
    assert run(ExpectedCalibrationError(), logits, label=label)["expected_calibration_error"] == pytest.approx(expected, abs=1e-6)
    logits, target = multi
    p = sigmoid(logits).astype(np.float32)
    expected = calibration(p.ravel(), target.ravel() > 0.5, 7)
    assert run(ExpectedCalibrationError(bins=7), logits, target=target)["expected_calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_loss_weighs_rows():
    metric = MeanLoss()
    state = metric.start(2)
    for loss, weight in [([1.0, 5.0, np.nan], [1.0, 0.5, 0.0]), ([2.0, np.inf, np.inf], [1.0, 0.0, 0.0])]:
        state = metric.update(state, {"loss": jnp.asarray(loss)}, {"loss_weight": jnp.asarray(weight)})
    assert metric.compute(state) == {"loss": (1.0 + 2.5 + 2.0) / 2.5}


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_regression(outputs, offset):
    random = np.random.default_rng(outputs)
    target = (random.normal(size=(250, outputs)) + offset).astype(np.float32)
    logits = (target + random.normal(size=target.shape)).astype(np.float32)
    exact_target, exact = target.astype(np.float64), logits.astype(np.float64)
    expected = {
        MeanSquaredError: reference.mean_squared_error(exact_target, exact),
        MeanAbsoluteError: reference.mean_absolute_error(exact_target, exact),
        R2: reference.r2_score(exact_target, exact),
        Pearson: np.mean([np.corrcoef(exact_target[:, i], exact[:, i])[0, 1] for i in range(outputs)]),
    }
    for kind, value in expected.items():
        (got,) = run(kind(), logits, target=target).values()
        assert got == pytest.approx(value, rel=2e-5), kind


def test_regression_on_a_target_that_does_not_vary():
    target = np.full((10, 1), 2.0, np.float32)
    for logits in (target, target + np.linspace(0, 1, 10, dtype=np.float32)[:, None]):
        assert run(R2(), logits, target=target)["r2"] == reference.r2_score(target, logits)
        assert np.isnan(run(Pearson(), logits, target=target)["pearson"])


def test_no_examples_give_nan_and_no_warning():
    for name, where in METRICS.items():
        metric = load_class(where)()
        for value in metric.compute(metric.start(3)).values():
            assert isinstance(value, list) or np.isnan(value), name


def test_counts_do_not_stop_at_the_end_of_float32():
    metric = Accuracy()
    state = metric.start(2) | {
        "examples": jnp.asarray(2**24 + 2**31, jnp.uint32),
        "exact": jnp.asarray(2**24, jnp.uint32),
    }
    predictions = {"logits": jnp.asarray([[0.0, 1.0]])}
    batch = {"label": jnp.asarray([1]), "loss_weight": jnp.ones(1)}
    for _ in range(3):
        state = metric.update(state, predictions, batch)
    counts = metric.read(state)
    assert (counts.examples, counts.exact) == (2**24 + 2**31 + 3, 2**24 + 3)
    assert read_count(count(jnp.ones(5, bool)) + zero_count()) == 5


def test_running_sums_keep_what_float32_loses():
    values = np.random.default_rng(0).random(20_000).astype(np.float32)
    running, _ = jax.lax.scan(lambda s, v: (add_sum(s, v), None), zero_sum() + jnp.asarray([[1e6], [0.0]])[:, 0], jnp.asarray(values))
    plain, _ = jax.lax.scan(lambda s, v: (s + v, None), jnp.float32(1e6), jnp.asarray(values))
    exact = 1e6 + values.astype(np.float64).sum()
    assert abs(float(read_sum(running)) - exact) < 1e-3 < abs(float(plain) - exact)


@pytest.mark.parametrize("name", METRICS)
def test_each_has_a_state_of_fixed_structure_and_knows_what_is_better(name):
    metric = load_class(METRICS[name])()
    state = jax.eval_shape(lambda: metric.start(5))
    batch = {"loss_weight": jnp.ones(3)}
    told = {
        "logits": jnp.ones((3, 5)), "probabilities": jnp.full((3, 5), 0.2), "loss": jnp.ones(3), "total_loss": jnp.ones(3), "tokens": jnp.ones(3),
        "right_tokens": jnp.ones(3), "reward": jnp.ones((3, 2)),
    }  # fmt: skip
    predictions = {key: told[key] for key in (*metric.reads, "loss")}
    for truth in ({"label": jnp.zeros(3, int)}, {"target": jnp.ones((3, 5))}):
        try:
            new = jax.eval_shape(metric.update, state, predictions, batch | truth)
        except ConfigError as error:
            assert "target" in str(error) and "label" in truth
            continue
        assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
        numbers = metric.compute(metric.update(metric.start(5), predictions, batch | truth))
        for key, value in numbers.items():
            if not isinstance(value, list):
                assert metric.better(key) == better(key) in ("max", "min")
    with pytest.raises(ConfigError, match="gives no number"):
        metric.better("nonsense")
    assert better("nonsense") is None
    assert better("loss") == "min" and better("f1_micro") == "max"


def test_sharded_batches_give_the_same(single):
    logits, label = single
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = {"label": label, "loss_weight": (np.arange(400) % 7 > 0).astype(np.float32)}
    predictions = {"logits": logits, "probabilities": softmax(logits).astype(np.float32)}
    for metric in (F1(), Auc(), ExpectedCalibrationError()):
        update = jax.jit(metric.update)
        one = update(metric.start(logits.shape[1]), predictions, batch)
        many = update(metric.start(logits.shape[1]), jax.device_put(predictions, rows), jax.device_put(batch, rows))
        for key, value in metric.compute(one).items():
            np.testing.assert_allclose(metric.compute(many)[key], value, rtol=1e-6)
