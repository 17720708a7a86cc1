"""Bayesian optimisation with a Gaussian process, in NumPy and SciPy; Optuna's own needs PyTorch.

Matern 5/2 kernel with a length scale per number, fitted by its marginal likelihood; expected improvement, maximised over random settings and
over neighbours of the best.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

CANDIDATES = 2000
JITTER = 1e-6


class GaussianProcess:
    """Chooses one setting; what is conditional or comes before `startup` finished trials is chosen by chance."""

    def __init__(self, seed: int, startup: int):
        self.seed, self.startup = seed, startup

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> dict[str, Any]:
        from optuna.study import StudyDirection
        from optuna.trial import TrialState

        seen = [
            past
            for past in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if past.number != trial.number
            and past.value is not None
            and math.isfinite(past.value)
            and search_space.keys() <= past.params.keys()
        ]
        if len(seen) < self.startup:
            return {}
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        code = Code(search_space)
        points = np.stack([code.encode(past.params) for past in seen])
        values = sign * np.array([past.value for past in seen], float)
        random = np.random.default_rng(self.seed)
        model = Model.fitted(points, values)
        candidates = code.candidates(random, points[np.argsort(-values)[:3]])
        return code.decode(candidates[int(np.argmax(model.improvement(candidates)))])

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=self.seed).sample_independent(study, trial, param_name, param_distribution)


class Code:
    """Settings as points of a unit cube: a range on the scale that is searched, a choice as one coordinate per label."""

    def __init__(self, space: Mapping[str, Any]):
        self.space = dict(sorted(space.items()))
        self.widths = [len(getattr(distribution, "choices", "x")) for distribution in self.space.values()]

    def encode(self, settings: Mapping[str, Any]) -> np.ndarray:
        parts = []
        for name, distribution in self.space.items():
            if hasattr(distribution, "choices"):
                parts.append([float(choice == settings[name]) for choice in distribution.choices])
            else:
                low, high = ends(distribution)
                at = math.log(settings[name]) if distribution.log else settings[name]
                parts.append([(at - low) / (high - low)])  # beyond 0 and 1 where the range has narrowed since
        return np.concatenate(parts)

    def decode(self, point: np.ndarray) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name, distribution, columns in self.columns():
            if hasattr(distribution, "choices"):
                settings[name] = distribution.choices[int(np.argmax(point[columns]))]
            else:
                number = float(numbers(distribution, point[columns])[0])
                settings[name] = round(number) if isinstance(distribution.low, int) else number
        return settings

    def columns(self) -> Iterator[tuple[str, Any, slice]]:
        start = 0
        for (name, distribution), width in zip(self.space.items(), self.widths, strict=True):
            yield name, distribution, slice(start, start + width)
            start += width

    def candidates(self, random: np.random.Generator, best: np.ndarray) -> np.ndarray:
        """Points anywhere, and points near the best so far; every one is a setting that can be had."""
        anywhere = random.random((CANDIDATES, sum(self.widths)))
        near = best[random.integers(len(best), size=CANDIDATES // 2)]
        near = near + random.normal(0, 0.08, near.shape) + 0.4 * random.normal(0, 1, near.shape) * (random.random(near.shape) < 0.15)
        points = np.concatenate([anywhere, near])
        for _, distribution, columns in self.columns():
            part = points[:, columns]
            if hasattr(distribution, "choices"):
                points[:, columns] = np.eye(part.shape[1])[part.argmax(1)]
            else:
                low, high = ends(distribution)
                values = numbers(distribution, part)
                points[:, columns] = ((np.log(values) if distribution.log else values) - low) / (high - low)
        return points


def ends(distribution: Any) -> tuple[float, float]:
    """(low, high) on the scale that is searched."""
    scale = math.log if distribution.log else float
    return scale(distribution.low), scale(distribution.high)


def numbers(distribution: Any, part: np.ndarray) -> np.ndarray:
    """Coordinates of one range as values that it can have."""
    low, high = ends(distribution)
    values = low + np.clip(part, 0, 1) * (high - low)
    values = np.exp(values) if distribution.log else values
    if distribution.step is not None:
        values = distribution.low + distribution.step * np.round((values - distribution.low) / distribution.step)
    return np.clip(values, distribution.low, distribution.high)


class Model:
    """The posterior over the (standardised, higher is better) value."""

    def __init__(self, points: np.ndarray, values: np.ndarray, logs: np.ndarray):
        from scipy.linalg import cho_factor, cho_solve

        self.points, self.logs = points, logs
        self.mean, self.spread = float(values.mean()), float(values.std()) or 1.0
        self.targets = (values - self.mean) / self.spread
        lengths, noise = np.exp(logs[:-1]), math.exp(logs[-1])
        self.factor: Any = cho_factor(matern(points, points, lengths) + (noise + JITTER) * np.eye(len(points)), lower=True)
        self.weights = cho_solve(self.factor, self.targets)

    @classmethod
    def fitted(cls, points: np.ndarray, values: np.ndarray) -> Model:
        """Length scales and noise of the greatest marginal likelihood, with a weak prior that keeps lengths near the cube's size."""
        from scipy.optimize import minimize

        def cost(logs: np.ndarray) -> float:
            try:
                return cls(points, values, logs).surprise()
            except np.linalg.LinAlgError:
                return 1e6

        size = points.shape[1]
        bounds = [(math.log(0.05), math.log(10.0))] * size + [(math.log(1e-5), math.log(1.0))]
        start = np.r_[np.full(size, math.log(0.7)), math.log(1e-2)]
        return cls(points, values, minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 20}).x)

    def surprise(self) -> float:
        """Negative log marginal likelihood, up to a constant, and the prior's."""
        lower = np.tril(self.factor[0])
        fit = 0.5 * float(self.targets @ self.weights) + float(np.log(np.diag(lower)).sum())
        return fit + float(((self.logs[:-1] - math.log(0.7)) ** 2).sum()) / 4 + (self.logs[-1] - math.log(1e-2)) ** 2 / 18

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation) of the standardised value, without the noise."""
        from scipy.linalg import solve_triangular

        across = matern(points, self.points, np.exp(self.logs[:-1]))
        inner = solve_triangular(np.tril(self.factor[0]), across.T, lower=True)
        return across @ self.weights, np.sqrt(np.maximum(1.0 - (inner**2).sum(0), 1e-12))

    def improvement(self, points: np.ndarray) -> np.ndarray:
        """Expected improvement over the best mean seen; against the best single value it would chase noise."""
        from scipy.special import ndtr

        mean, deviation = self.predict(points)
        best = float(self.predict(self.points)[0].max())
        score = (mean - best) / deviation
        return (mean - best) * ndtr(score) + deviation * np.exp(-0.5 * score**2) / math.sqrt(2 * math.pi)


def matern(left: np.ndarray, right: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Matern 5/2 of every pair of rows."""
    distance = np.sqrt(5.0) * np.sqrt(((left[:, None] / lengths - right[None] / lengths) ** 2).sum(-1))
    return (1.0 + distance + distance**2 / 3.0) * np.exp(-distance)
