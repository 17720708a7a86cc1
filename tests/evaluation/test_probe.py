"""The probe's solution is scikit-learn's; out-of-fold probabilities come from models that did not see the row or a copy of it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxtune.evaluation.probe import PENALTIES, deal_folds, fit_probe, minimise, out_of_fold, softmax


def clouds(n: int = 400, width: int = 12, classes: int = 4, apart: float = 1.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width)) * apart
    labels = random.integers(0, classes, n)
    return centres[labels] + random.normal(size=(n, width)) * random.uniform(0.5, 3, width), labels


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3])
def test_the_minimum_of_scikit_learn(penalty: float) -> None:
    features, labels = clouds()
    probe = fit_probe(features, labels, 4, penalty, steps=2000)
    scaled = (features - features.mean(0)) / features.std(0)
    reference = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-10, max_iter=10_000).fit(scaled, labels)
    np.testing.assert_allclose(probe.probabilities(features), reference.predict_proba(scaled), atol=2e-3)


def test_a_warm_start_ends_in_the_same_place_and_constant_features_do_no_harm() -> None:
    features, labels = clouds()
    features = np.column_stack([features, np.full(len(features), 7.0)])
    cold = fit_probe(features, labels, 4, 1e-2)
    warm = fit_probe(features, labels, 4, 1e-2, start=fit_probe(features, labels, 4, 1.0))
    np.testing.assert_allclose(cold.probabilities(features), warm.probabilities(features), atol=2e-3)
    assert np.isfinite(cold.weights).all() and np.abs(cold.weights[-1]).max() < 1e-6


def test_rows_are_judged_by_models_that_did_not_see_them() -> None:
    """With labels that are pure chance, a model that had seen its row would be right too often."""
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(300, 200)), random.integers(0, 3, 300)
    found = out_of_fold(features, labels, 3)
    right = (found.probabilities.argmax(1) == labels).mean()
    assert abs(right - 1 / 3) < 0.1 and found.penalty == PENALTIES[0]
    np.testing.assert_allclose(found.probabilities.sum(1), 1)


def test_copies_are_judged_together() -> None:
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(100, 60)), random.integers(0, 2, 100)
    doubled, twice = np.repeat(features, 2, 0), np.repeat(labels, 2)
    groups = [f"key {i // 2}" for i in range(200)]
    apart = (out_of_fold(doubled, twice, 2, groups=groups).probabilities.argmax(1) == twice).mean()
    together = (out_of_fold(doubled, twice, 2).probabilities.argmax(1) == twice).mean()
    assert apart < 0.65 < together


def test_folds_are_even_over_classes_and_keep_groups() -> None:
    labels = np.array([0] * 50 + [1] * 25 + [2] * 10)
    fold = deal_folds(labels, None, 5, 0)
    counts = np.array([[((fold == f) & (labels == c)).sum() for c in range(3)] for f in range(5)])
    assert (counts.max(0) - counts.min(0) <= 1).all()
    groups = np.arange(85) // 3
    fold = deal_folds(labels, groups, 5, 0)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))


def test_the_minimiser_on_a_known_bowl() -> None:
    scales = np.logspace(0, 3, 20)
    found = minimise(lambda x: (float((scales * (x - 1) ** 2).sum() / 2), scales * (x - 1)), np.zeros(20), 500)
    np.testing.assert_allclose(found, 1, atol=1e-3)
    np.testing.assert_allclose(softmax(np.array([[1000.0, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])
