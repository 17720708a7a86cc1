"""What features tell about the classes: softmax regression with an L2 penalty, and its probabilities for rows that it was not fitted on.

Convex and in NumPy: no seed, no step size, and the answer is that of any correct solver, so it can be held against scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4)  # per example, strongest first: each is the start of the next
STEPS = 200
MEMORY = 10  # pairs of steps that L-BFGS remembers
TOLERANCE = 1e-4  # of the gradient's norm


@dataclass(frozen=True)
class Probe:
    """Weights f64[D, C] and biases f64[C] on standardised features."""

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """f64[n, C]"""
        return softmax((features - self.mean) / self.spread @ self.weights + self.bias)


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities f64[n, C] of rows by probes that did not see them, and the penalty that was best for a fold left out."""

    probabilities: np.ndarray
    penalty: float


def fit_probe(
    features: np.ndarray, labels: np.ndarray, classes: int, penalty: float, *, start: Probe | None = None, steps: int = STEPS
) -> Probe:
    """Minimises mean cross-entropy + penalty / 2 * |weights|^2 (the biases are free) on standardised features.

    Args:
        features: [n, D].
        labels: class numbers [n].
        start: a probe on the same features to begin with.
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 1e-6 * (np.abs(mean) + 1e-12), spread, 1.0)
    x = np.ascontiguousarray((features - mean) / spread, np.float64)
    hot = np.zeros((len(labels), classes))
    hot[np.arange(len(labels)), labels] = 1.0
    width = x.shape[1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-classes].reshape(width, classes), flat[-classes:]
        scores = x @ weights + bias
        scores -= scores.max(1, keepdims=True)
        raised = np.exp(scores)
        total = raised.sum(1)
        value = float((np.log(total) - (scores * hot).sum(1)).mean() + penalty / 2 * np.sum(weights**2))
        error = (raised / total[:, None] - hot) / len(labels)
        return value, np.concatenate([(x.T @ error + penalty * weights).reshape(-1), error.sum(0)])

    flat = np.zeros((width + 1) * classes) if start is None else np.concatenate([start.weights.reshape(-1), start.bias])
    flat = minimise(loss, flat, steps)
    return Probe(mean, spread, flat[:-classes].reshape(width, classes), flat[-classes:])


def out_of_fold(
    features: np.ndarray, labels: np.ndarray, classes: int, *, groups: Sequence[Any] | None = None, folds: int = 5, seed: int = 0
) -> OutOfFold:
    """Every row's probabilities by a probe fitted on the other folds; the penalty is the one that is best for the first fold.

    Args:
        groups: rows of one group stay in one fold, or a copy would tell the label of the other.
    """
    fold = deal_folds(labels, groups, folds, seed)
    held = fold == 0
    trials: list[tuple[float, Probe, float]] = []
    start = None
    for penalty in PENALTIES:
        start = fit_probe(features[~held], labels[~held], classes, penalty, start=start)
        given = start.probabilities(features[held])[np.arange(int(held.sum())), labels[held]]
        trials.append((float(-np.log(np.maximum(given, 1e-12)).mean()), start, penalty))
    _, best, penalty = min(trials, key=lambda trial: trial[0])
    out = np.zeros((len(labels), classes))
    for number in range(folds):
        held = fold == number
        probe = best if number == 0 else fit_probe(features[~held], labels[~held], classes, penalty, start=best)
        out[held] = probe.probabilities(features[held])
    return OutOfFold(out, penalty)


def deal_folds(labels: np.ndarray, groups: Sequence[Any] | None, folds: int, seed: int) -> np.ndarray:
    """The fold i64[n] of every row: groups whole, and every class (of a group's first row) spread evenly."""
    random = np.random.default_rng(seed)
    group = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    _, first = np.unique(group, return_index=True)
    order = random.permutation(len(first))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    dealt = np.empty(len(first), np.int64)
    dealt[order] = np.arange(len(first)) % folds
    return dealt[group]


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def minimise(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], x: np.ndarray, steps: int) -> np.ndarray:
    """L-BFGS (Nocedal 1980) with step halving, for smooth convex functions that give (value, gradient)."""
    value, gradient = loss(x)
    pairs: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(steps):
        if np.linalg.norm(gradient) < TOLERANCE:
            break
        direction = _direction(gradient, pairs)
        downhill = float(direction @ gradient)
        length = 1.0 if pairs else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(30):
            moved = x + length * direction
            new_value, new_gradient = loss(moved)
            if new_value <= value + 1e-4 * length * downhill:
                break
            length /= 2
        else:
            break  # no shorter step is better: the limit of the arithmetic
        step, change = moved - x, new_gradient - gradient
        if (along := float(step @ change)) > 1e-12 * float(change @ change):
            pairs = [*pairs[-MEMORY + 1 :], (step, change, 1 / along)]
        x, value, gradient = moved, new_value, new_gradient
    return x


def _direction(gradient: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Minus the approximate inverse Hessian times the gradient."""
    direction, kept = -gradient, []
    for step, change, rho in reversed(pairs):
        kept.append(rho * float(step @ direction))
        direction = direction - kept[-1] * change
    if pairs:
        step, change, rho = pairs[-1]
        direction = direction / (rho * float(change @ change))
    for (step, change, rho), share in zip(pairs, reversed(kept), strict=True):
        direction = direction + (share - rho * float(change @ direction)) * step
    return direction
