"""Choosing settings: the same after a kill, better than chance, and the Gaussian process against scikit-learn's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from jaxtune.search.gaussian import JITTER, Code, Model
from jaxtune.search.ledger import SURPLUS, position
from jaxtune.search.strategies import GP, TPE, Listed, Random, Seeded, Strategy, seed_of

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)
FLOAT, INT, CHOICE = (
    optuna.distributions.FloatDistribution,
    optuna.distributions.IntDistribution,
    optuna.distributions.CategoricalDistribution,
)
SPACE = {"x": FLOAT(1e-6, 1.0, log=True), "y": FLOAT(0.0, 1.0), "n": INT(1, 9), "c": CHOICE(["a", "b", "d"])}


def value(x: float, y: float, n: int, c: str) -> float:
    return -((math.log10(x) + 3) ** 2) - 4 * (y - 0.3) ** 2 - 0.02 * abs(n - 4) + 0.3 * (c == "b")


def study(strategy: Strategy, seed: int) -> Any:
    made = optuna.create_study(direction="maximize")
    made.sampler = Seeded(strategy.make_sampler, seed, lambda number: SPACE)
    return made


def go_on(study: Any, until: int) -> list[dict[str, Any]]:
    while len(study.trials) < until:
        trial = study.ask(SPACE)
        study.tell(trial, value(**trial.params))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("strategy", [Random(), TPE(), GP()])
def test_a_search_that_goes_on_chooses_what_it_would_have_chosen(strategy: Strategy) -> None:
    whole = go_on(study(strategy, 5), 14)
    first = study(strategy, 5)
    go_on(first, 11)
    again = study(strategy, 5)
    for trial in first.trials:
        again.add_trial(trial)
    assert go_on(again, 14) == whole
    assert go_on(study(strategy, 6), 14) != whole


def test_half_a_trial_is_completed_as_it_would_have_been() -> None:
    """Killed between two suggestions: the rest comes out the same, whether or not the first are stored already."""
    whole = study(TPE(startup=3), 1)
    go_on(whole, 6)
    half = study(TPE(startup=3), 1)
    go_on(half, 5)
    trial = half.ask()
    first = trial.suggest_float("x", 1e-6, 1.0, log=True)
    later = optuna.trial.Trial(half, trial._trial_id)
    known = {"x": later.suggest_float("x", 1e-6, 1.0, log=True), "y": later.suggest_float("y", 0.0, 1.0)}
    known |= {"n": later.suggest_int("n", 1, 9), "c": later.suggest_categorical("c", ["a", "b", "d"])}
    assert known["x"] == first and known == whole.trials[5].params


def test_models_find_better_settings_than_chance() -> None:
    """The Gaussian process in half the trials; 0.3 is the greatest value there is."""

    def best(strategy: Strategy, trials: int, seeds: int) -> float:
        return float(np.mean([max(value(**params) for params in go_on(study(strategy, seed), trials)) for seed in range(seeds)]))

    random, parzen, process = best(Random(), 36, 6), best(TPE(), 36, 6), best(GP(), 18, 3)
    assert random < parzen - 0.02 < 0.28 and parzen < process < 0.3001, (random, parzen, process)
    assert process > 0.2


def test_listed_settings_come_by_number() -> None:
    rows = [{"c": "b", "n": 3}, {"c": "a", "n": 1}, {"c": "d", "n": 2}]
    made = optuna.create_study(sampler=Listed(rows, position))
    space = {"c": SPACE["c"], "n": SPACE["n"]}
    assert [made.ask(space).params for _ in rows[:2]] == rows[:2]
    made.ask().set_user_attr(SURPLUS, True)  # one that two workers asked for at once takes no row
    assert made.ask(space).params == rows[2]


def test_seeds_differ_by_search_trial_and_key() -> None:
    assert len({seed_of(seed, number, key) for seed in range(3) for number in range(3) for key in ("", "a", "b")}) == 27


def test_the_posterior_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    points, values = random.random((9, 3)), random.normal(size=9)
    lengths, noise = np.array([0.3, 0.7, 1.4]), 0.05
    model = Model(points, values, np.log([*lengths, noise]))
    kernel = Matern(lengths, nu=2.5) + WhiteKernel(noise + JITTER)
    theirs = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(points, (values - values.mean()) / values.std())
    where = random.random((5, 3))
    mean, deviation = model.predict(where)
    their_mean, their_deviation = theirs.predict(where, return_std=True)
    np.testing.assert_allclose(mean, their_mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(deviation**2, their_deviation**2 - noise - JITTER, rtol=1e-7, atol=1e-9)
    constant = 0.5 * len(points) * math.log(2 * math.pi)
    prior = float(((np.log(lengths) - math.log(0.7)) ** 2).sum()) / 4 + (math.log(noise) - math.log(1e-2)) ** 2 / 18
    assert -(model.surprise() - prior) - constant == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-9)


def test_expected_improvement_is_the_mean_of_draws() -> None:
    random = np.random.default_rng(1)
    model = Model(random.random((6, 2)), random.normal(size=6), np.log([0.4, 0.4, 0.01]))
    where = random.random((3, 2))
    mean, deviation = model.predict(where)
    best = model.predict(model.points)[0].max()
    draws = np.maximum(mean + deviation * random.normal(size=(400_000, 1)) - best, 0).mean(0)
    np.testing.assert_allclose(model.improvement(where), draws, rtol=0.03, atol=1e-4)


def test_every_candidate_can_be_had() -> None:
    code = Code(SPACE)
    points = code.candidates(np.random.default_rng(0), np.stack([code.encode({"x": 1e-6, "y": 1.0, "n": 9, "c": "d"})]))
    for point in points[::200]:
        settings = code.decode(point)
        assert all(distribution._contains(distribution.to_internal_repr(settings[name])) for name, distribution in SPACE.items())
        np.testing.assert_allclose(code.encode(settings), point, atol=1e-12)
    assert {code.decode(point)["n"] for point in points} == set(range(1, 10))
