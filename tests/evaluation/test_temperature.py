"""The temperature is the minimum of the loss (held against scipy), recovers one that was planted, and leaves answers alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.temperature import COLDEST, HOTTEST, fit_temperature, probabilities_at, rescale, rescale_by_halves


def single(heat: float, n: int = 4000, classes: int = 4, seed: int = 0) -> tuple[Outcomes, np.ndarray]:
    """Truth drawn from honest probabilities; the model says them `heat` times too sharply. (outcomes, honest logits)"""
    random = np.random.default_rng(seed)
    honest = random.normal(0, 2, (n, classes))
    truth = np.array([random.choice(classes, p=p) for p in softmax(honest, 1)])
    p = softmax(honest * heat, 1)
    loss = -np.log(p[np.arange(n), truth])
    return Outcomes("single_label", tuple("abcd"[:classes]), np.arange(n), truth, p.argmax(1), p, loss), honest


def several(heat: float, n: int = 2000) -> Outcomes:
    random = np.random.default_rng(1)
    honest = random.normal(-0.5, 2, (n, 3))
    truth = random.random((n, 3)) < expit(honest)
    p = expit(honest * heat)
    return Outcomes("multi_label", ("a", "b", "c"), np.arange(n), truth, p > 0.5, p, np.zeros(n))


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.5])
def test_it_is_the_minimum_and_what_was_planted(heat: float) -> None:
    outcomes, honest = single(heat)
    found = fit_temperature(outcomes)

    def loss(temperature: float) -> float:
        return -log_softmax(honest * heat / temperature, 1)[np.arange(len(honest)), outcomes.truth].mean()

    best = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    assert found == pytest.approx(best, rel=1e-4)
    assert found == pytest.approx(heat, rel=0.1)


@pytest.mark.parametrize("heat", [0.6, 2.0])
def test_several_labels_have_one_temperature(heat: float) -> None:
    outcomes = several(heat)
    found = fit_temperature(outcomes)
    assert found == pytest.approx(heat, rel=0.1)
    np.testing.assert_allclose(probabilities_at(outcomes, 1.0), outcomes.probabilities, atol=1e-12)
    assert ((probabilities_at(outcomes, found) > 0.5) == outcomes.predicted).all()


def test_it_makes_an_overconfident_model_honest_where_it_was_not_fitted() -> None:
    fitted, other = single(3.0, seed=0)[0], single(3.0, seed=1)[0]
    told = rescale(other, fit_temperature(fitted), fitted_on="validation", bins=15)
    assert told.before.overconfidence > 0.1 and abs(told.after.overconfidence) < 0.02
    assert told.after.error < 0.3 * told.before.error and told.loss_after < told.loss_before
    assert told.loss_before == pytest.approx(other.loss.mean())
    assert (probabilities_at(other, told.temperature).argmax(1) == other.predicted).all()
    halves = rescale_by_halves(other, bins=15)
    assert halves.temperature == fit_temperature(other) and halves.after.error < 0.3 * halves.before.error


def test_without_errors_there_is_no_best_one() -> None:
    outcomes, _ = single(1.0, n=60)
    right = Outcomes(
        "single_label", outcomes.names, outcomes.rows, outcomes.predicted, outcomes.predicted, outcomes.probabilities, outcomes.loss
    )
    assert fit_temperature(right) == COLDEST
    wrong = Outcomes(
        "single_label",
        outcomes.names,
        outcomes.rows,
        outcomes.probabilities.argmin(1),
        outcomes.predicted,
        outcomes.probabilities,
        outcomes.loss,
    )
    assert fit_temperature(wrong) == HOTTEST
    assert rescale(right, COLDEST, fitted_on="validation", bins=15).at_the_end


def test_probabilities_of_zero_and_one() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]] * 10)
    truth = np.array([0, 1, 1, 0] * 10)
    found = fit_temperature(Outcomes("single_label", ("a", "b"), np.arange(40), truth, p.argmax(1), p, np.zeros(40)))
    assert np.isfinite(found) and found > 5
