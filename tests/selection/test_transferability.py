from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from jaxtune.core.errors import DataError, ModelError
from jaxtune.evaluation.probe import PENALTIES
from jaxtune.selection.transferability import (
    RIDGE_PENALTIES,
    Labelled,
    logme,
    measure,
    measure_features,
    neighbour_scores,
    prediction_loss,
    probe_scores,
    usual_measure,
)
from jaxtune.tasks.base import Problem


def made(
    problem: Problem = "single_label",
    rows: int = 120,
    width: int = 12,
    signal: float = 1.0,
    seed: int = 0,
    copies: int = 0,
    noise: float = 0.0,
):
    """Features whose first columns carry the label, and the labels; the last `copies` rows repeat the first ones."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, 3))
    told = hidden + noise * random.normal(size=(rows, 3))
    x = np.concatenate([signal * hidden, random.normal(size=(rows, width - 3))], 1) @ random.normal(size=(width, width))
    keys = [f"{i:040x}" for i in range(rows)]
    if problem == "single_label":
        targets, name = told.argmax(1), "accuracy"
    elif problem == "multi_label":
        targets, name = (told > 0.3).astype(np.float64), "f1_micro"
    else:
        targets, name = (hidden[:, :1] * 2 + 5 + 0.1 * random.normal(size=(rows, 1))), "r2"
    if copies:
        x[-copies:], targets[-copies:], keys[-copies:] = x[:copies], targets[:copies], keys[:copies]
    return x.astype(np.float32), Labelled(problem, targets, keys, 3, name)


# -- LogME ----------------------------------------------------------------------------------------------------------------------------


def best_evidence(x: np.ndarray, y: np.ndarray) -> float:
    """max over alpha, beta of log N(y; 0, I / beta + x x' / alpha) / n, by a general optimiser on the plain definition."""
    rows = len(x)

    def minus(logs: np.ndarray) -> float:
        covariance = np.eye(rows) / np.exp(logs[1]) + x @ x.T / np.exp(logs[0])
        _, size = np.linalg.slogdet(covariance)
        return 0.5 * (rows * np.log(2 * np.pi) + size + y @ np.linalg.solve(covariance, y)) / rows

    return -min(optimize.minimize(minus, start, method="Nelder-Mead", options={"maxiter": 2000}).fun for start in ([0, 0], [3, 1]))


@pytest.mark.parametrize(("rows", "width"), [(60, 12), (25, 40)])
def test_logme_is_the_greatest_evidence(rows: int, width: int):
    x, labelled = made(rows=rows, width=width)
    wanted = np.mean([best_evidence(x.astype(float), (labelled.targets == c).astype(float)) for c in range(3)])
    assert logme(x, labelled) == pytest.approx(wanted, abs=2e-3)


def test_logme_of_a_regression():
    x, labelled = made("regression", rows=50)
    assert logme(x, labelled) == pytest.approx(best_evidence(x.astype(float), labelled.targets[:, 0]), abs=2e-3)


def test_logme_ranks_features_by_what_they_carry():
    found = [logme(*made(signal=signal)) for signal in (0.0, 0.5, 2.0)]
    assert found == sorted(found) and np.isfinite(found).all()
    constant = made()[1]
    assert np.isfinite(logme(np.ones((120, 4), np.float32), constant)) and np.isfinite(logme(np.zeros((120, 4), np.float32), constant))


# -- the probe ------------------------------------------------------------------------------------------------------------------------


def inner_split(labelled: Labelled, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    training = np.flatnonzero(~held)
    apart = labelled.take(training).folds(4, 0) == 0
    return training[~apart], training[apart]


def test_the_probe_is_scikit_learns_logistic_regression():
    x, labelled = made(rows=200, width=20, noise=1.0)
    held = labelled.folds(5, 0) == 0
    fitted, apart = inner_split(labelled, held)

    def sklearn(train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
        scaler = StandardScaler().fit(x[train].astype(float))
        model = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=5000).fit(
            scaler.transform(x[train]), labelled.targets[train]
        )
        return model.predict_proba(scaler.transform(x[test]))

    losses = [prediction_loss("single_label", sklearn(fitted, apart, penalty), labelled.targets[apart]) for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(losses))]
    wanted = sklearn(np.flatnonzero(~held), np.flatnonzero(held), penalty)
    found = probe_scores(x.astype(np.float64), labelled, held, 0)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_the_probe_of_several_labels_is_one_logistic_regression_each():
    x, labelled = made("multi_label", rows=200, width=20, noise=1.0)
    held = labelled.folds(5, 0) == 1
    fitted, apart = inner_split(labelled, held)

    def sklearn(train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
        scaler = StandardScaler().fit(x[train].astype(float))
        make = lambda c: LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=5000).fit(  # noqa: E731
            scaler.transform(x[train]), labelled.targets[train, c]
        )
        return np.stack([make(c).predict_proba(scaler.transform(x[test]))[:, 1] for c in range(3)], 1)

    losses = [prediction_loss("multi_label", sklearn(fitted, apart, penalty), labelled.targets[apart]) for penalty in PENALTIES]
    wanted = sklearn(np.flatnonzero(~held), np.flatnonzero(held), PENALTIES[int(np.argmin(losses))])
    np.testing.assert_allclose(probe_scores(x.astype(np.float64), labelled, held, 0), wanted, atol=2e-3)


@pytest.mark.parametrize("width", [20, 200])
def test_the_probe_of_numbers_is_ridge_regression(width: int):
    x, labelled = made("regression", width=width)
    held = labelled.folds(5, 0) == 2
    fitted, apart = inner_split(labelled, held)

    def sklearn(train: np.ndarray, test: np.ndarray, penalty: float) -> np.ndarray:
        scaler = StandardScaler().fit(x[train].astype(float))
        model = Ridge(alpha=penalty * len(train)).fit(scaler.transform(x[train]), labelled.targets[train])
        return model.predict(scaler.transform(x[test])).reshape(-1, 1)

    losses = [prediction_loss("regression", sklearn(fitted, apart, penalty), labelled.targets[apart]) for penalty in RIDGE_PENALTIES]
    wanted = sklearn(np.flatnonzero(~held), np.flatnonzero(held), RIDGE_PENALTIES[int(np.argmin(losses))])
    np.testing.assert_allclose(probe_scores(x.astype(np.float64), labelled, held, 0), wanted, atol=1e-4)


# -- neighbours -----------------------------------------------------------------------------------------------------------------------


def test_neighbours_are_scikit_learns():
    x, labelled = made()
    held = labelled.folds(5, 0) == 0
    model = KNeighborsClassifier(10, metric="cosine").fit(x[~held], labelled.targets[~held])
    np.testing.assert_allclose(neighbour_scores(x.astype(float), labelled, held), model.predict_proba(x[held]), atol=1e-5)
    x, labelled = made("regression")
    model = KNeighborsRegressor(10, metric="cosine").fit(x[~held], labelled.targets[~held])
    np.testing.assert_allclose(neighbour_scores(x.astype(float), labelled, held), model.predict(x[held]), rtol=1e-5)


def test_equal_shares_go_to_the_nearer_class():
    x = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [1.0, 0.02]])
    labelled = Labelled("single_label", np.array([0, 1, 0, 1]), ["a", "b", "c", "d"], 2, "accuracy")
    held = np.array([True, False, False, False])
    found = neighbour_scores(x, labelled, held, neighbours=2)  # rows 3 and 1: both of class 1
    assert found.argmax() == 1
    found = neighbour_scores(x[:3], labelled.take(np.arange(3)), held[:3], neighbours=2)  # rows 1 and 2, one of each class
    assert found.argmax() == 1 and found[0, 0] == pytest.approx(0.5, abs=1e-5)


# -- folds, samples, measures ---------------------------------------------------------------------------------------------------------


def test_folds_are_stratified_and_keep_copies_together():
    _, labelled = made(rows=200, copies=30)
    fold = labelled.folds(5, 3)
    homes: dict[str, set[int]] = {}
    for key, number in zip(labelled.keys, fold, strict=True):
        homes.setdefault(key, set()).add(int(number))
    assert all(len(places) == 1 for places in homes.values()) and len(homes) == 170
    first = np.array([labelled.keys.index(key) == row for row, key in enumerate(labelled.keys)])
    for label in range(3):
        counts = np.bincount(fold[first & (labelled.targets == label)], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(fold, labelled.folds(5, 4))
    order = np.random.default_rng(0).permutation(len(labelled))
    np.testing.assert_array_equal(labelled.take(order).folds(5, 3), fold[order])  # of the data, not of their order


def test_copies_in_other_folds_would_be_noticed():
    """Random labels, every row twice: neighbours know the label of the copy, unless copies stay together."""
    random = np.random.default_rng(0)
    x = np.repeat(random.normal(size=(60, 30)), 2, axis=0)
    targets = np.repeat(random.integers(0, 2, 60), 2)
    together = Labelled("single_label", targets, [str(i // 2) for i in range(120)], 2, "accuracy")
    apart = Labelled("single_label", targets, [str(i) for i in range(120)], 2, "accuracy")
    near = {name: measure_near(x, rows) for name, rows in (("together", together), ("apart", apart))}
    assert near["together"] < 0.65 < 0.75 < near["apart"]


def measure_near(x: np.ndarray, rows: Labelled) -> float:
    fold = rows.folds(5, 0)
    return float(np.mean([measure(rows, fold == n, neighbour_scores(x, rows, fold == n, neighbours=1)) for n in range(5)]))


def test_a_sample_keeps_proportions_and_copies():
    _, labelled = made(rows=900, copies=100)
    rows = labelled.sample(300, 0)
    assert 280 <= len(rows) <= 320 and (np.diff(rows) > 0).all()
    chosen = {labelled.keys[i] for i in rows}
    assert sum(key in chosen for key in labelled.keys) == len(rows)
    shares = [np.bincount(targets, minlength=3) / len(targets) for targets in (labelled.targets, labelled.targets[rows])]
    np.testing.assert_allclose(*shares, atol=0.03)
    np.testing.assert_array_equal(labelled.sample(900, 0), np.arange(900))


def test_measures_are_scikit_learns():
    random = np.random.default_rng(0)
    held = np.ones(60, bool)
    scores = random.random((60, 4))
    truth = random.integers(0, 3, 60)  # class 3 is answered but never true
    rows = lambda name: Labelled("single_label", truth, [str(i) for i in range(60)], 4, name)  # noqa: E731
    assert measure(rows("accuracy"), held, scores) == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert measure(rows("f1"), held, scores) == pytest.approx(f1_score(truth, scores.argmax(1), average="macro"))
    several = random.integers(0, 2, (60, 4)).astype(float)
    found = measure(Labelled("multi_label", several, [""] * 60, 4, "f1_micro"), held, scores)
    assert found == pytest.approx(f1_score(several, scores > 0.5, average="micro"))
    numbers = random.normal(size=(60, 1))
    assert measure(Labelled("regression", numbers, [""] * 60, 1, "r2"), held, scores[:, :1]) == pytest.approx(
        r2_score(numbers, scores[:, :1])
    )


def test_the_measure_follows_the_task():
    assert [usual_measure("single_label", best) for best in ("accuracy", "f1", "matthews", "loss", "f1_micro")] == [
        "accuracy",
        "f1",
        "f1",
        "accuracy",
        "accuracy",
    ]
    assert usual_measure("multi_label", "f1") == "f1_micro" and usual_measure("regression", "pearson") == "r2"


# -- everything together --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
def test_better_features_score_better(problem: Problem):
    found = [measure_features(*made(problem, signal=signal)) for signal in (0.0, 3.0)]
    for name in ("probe", "neighbours"):
        poor, rich = (getattr(each, name) for each in found)
        assert rich.mean > poor.mean + 0.1 and len(rich.values) == 10
    assert found[1].logme > found[0].logme
    assert found[1].logme_interval.low < found[1].logme < found[1].logme_interval.high
    again = measure_features(*made(problem, signal=3.0))
    assert again == found[1]


def test_what_cannot_be_measured_is_said():
    x, labelled = made()
    x[3, 1] = np.nan
    with pytest.raises(ModelError, match="1 of 120 rows are not finite"):
        measure_features(x, labelled)
    few = labelled.take(np.arange(4))
    with pytest.raises(DataError, match="4 different training rows do not make 5 folds"):
        measure_features(np.ones((4, 3)), few)
