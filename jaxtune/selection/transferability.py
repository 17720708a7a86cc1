"""How well fixed features tell the labels of a task apart: LogME, a linear probe and nearest neighbours.

Pure functions of (features, labels) of training rows; held-out rows are always other contents than those fitted on. Every candidate gets
the same folds, so their scores are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from jaxtune.core.errors import DataError, ModelError
from jaxtune.evaluation.bootstrap import Interval
from jaxtune.evaluation.probe import PENALTIES, deal_folds, fit_probe, minimise
from jaxtune.selection.scores import Scores, jackknife

if TYPE_CHECKING:
    from jaxtune.tasks.labelled import Problem

NEIGHBOURS = 10
STEPS = 200  # of the multi-label probe's optimisation
BINS = 10  # of a regression's targets, to spread them evenly over the folds
RIDGE_PENALTIES = (1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3)  # per example


@dataclass(frozen=True, eq=False)
class Labelled:
    """Training rows with their labels, the same for all candidates.

    Attributes:
        targets: single_label: class numbers i64[n]; multi_label: 0 or 1, f64[n, C]; regression: f64[n, 1].
        keys: content key per row; rows with equal keys are copies and stay in one fold.
        measure: what a fold's predictions are judged by: accuracy, f1 (mean over classes), f1_micro or r2.
    """

    problem: Problem
    targets: np.ndarray
    keys: Sequence[str]
    classes: int
    measure: str

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: np.ndarray) -> Labelled:
        return Labelled(self.problem, self.targets[rows], [self.keys[int(i)] for i in rows], self.classes, self.measure)

    @cached_property
    def strata(self) -> np.ndarray:
        """i64[n]: rows of one number are spread evenly over the folds."""
        if self.problem == "single_label":
            return self.targets
        if self.problem == "multi_label":
            return np.unique(self.targets, axis=0, return_inverse=True)[1].reshape(-1)
        edges = np.quantile(self.targets[:, 0], np.linspace(0, 1, BINS + 1)[1:-1])
        return np.searchsorted(edges, self.targets[:, 0])

    def folds(self, count: int, seed: int) -> np.ndarray:
        """The fold i64[n] of every row: copies together, strata spread evenly.

        Raises:
            DataError: fewer different rows than folds.
        """
        different = len(set(self.keys))
        if different < count:
            raise DataError(f"{different} different training rows do not make {count} folds; use more data, or fewer folds")
        return deal_folds(self.strata, self.keys, count, seed)

    def sample(self, most: int, seed: int) -> np.ndarray:
        """Sorted row numbers, about `most` of them or all: strata in proportion, copies together."""
        if len(self) <= most:
            return np.arange(len(self))
        different = len(set(self.keys))
        place = deal_folds(self.strata, self.keys, different, seed)  # contents by stratum, in random order within it
        wanted = max(1, different * most // len(self))
        return np.flatnonzero(np.isin(place, np.arange(wanted) * different // wanted))


@dataclass(frozen=True)
class Transferability:
    """What one candidate's features are worth; higher is better for all three."""

    probe: Scores
    neighbours: Scores
    logme: float
    logme_interval: Interval


def measure_features(features: np.ndarray, rows: Labelled, *, folds: int = 5, repeats: int = 2, seed: int = 0) -> Transferability:
    """Probe and neighbours by cross-validation, LogME with a jackknife over the folds of the first repeat.

    Args:
        features: f32[n, D], one row per row of `rows`.

    Raises:
        ModelError: features that are not finite.
        DataError: too few rows.
    """
    x = np.asarray(features, np.float64)
    wrong = int((~np.isfinite(x).all(1)).sum())
    if wrong:
        raise ModelError(f"the features of {wrong} of {len(x)} rows are not finite; the checkpoint is damaged, or overflows in this dtype")
    dealt = [rows.folds(folds, seed + number) for number in range(repeats)]
    held = [fold == number for fold in dealt for number in range(folds)]
    probe = tuple(measure(rows, part, probe_scores(x, rows, part, seed)) for part in held)
    near = tuple(measure(rows, part, neighbour_scores(x, rows, part)) for part in held)
    whole = logme(x, rows)
    without = [logme(x[~part], rows.take(np.flatnonzero(~part))) for part in held[:folds]]
    return Transferability(Scores(probe, folds), Scores(near, folds), whole, jackknife(whole, without))


# -- the linear probe -----------------------------------------------------------------------------------------------------------


def probe_scores(x: np.ndarray, rows: Labelled, held: np.ndarray, seed: int) -> np.ndarray:
    """Scores f64[held, C] of a regularised linear model that saw the other rows.

    The penalty is the one with the least loss on a quarter of those other rows, which the model with that penalty then sees as well: the
    held-out rows decide nothing.
    """
    training = np.flatnonzero(~held)
    inner = rows.take(training)
    if len(set(inner.keys)) < 4:
        raise DataError(f"{len(set(inner.keys))} different training rows in a fold are too few for a probe; use more data")
    apart = inner.folds(4, seed) == 0
    fit = {"single_label": _softmax_path, "multi_label": _sigmoid_path, "regression": _ridge_path}[rows.problem]
    trials = fit(x[training[~apart]], inner.take(np.flatnonzero(~apart)), x[training[apart]], None)
    losses = [prediction_loss(rows.problem, scores, inner.targets[apart]) for scores in trials]
    return fit(x[training], inner, x[held], int(np.argmin(losses)))[-1]


def prediction_loss(problem: Problem, scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean cross-entropy of probabilities, or mean squared error."""
    if problem == "single_label":
        return float(-np.log(np.maximum(scores[np.arange(len(targets)), targets], 1e-12)).mean())
    if problem == "multi_label":
        clipped = np.clip(scores, 1e-12, 1 - 1e-12)
        return float(-(targets * np.log(clipped) + (1 - targets) * np.log(1 - clipped)).mean())
    return float(((scores - targets) ** 2).mean())


def _softmax_path(x: np.ndarray, rows: Labelled, new: np.ndarray, chosen: int | None) -> list[np.ndarray]:
    """Probabilities of `new` for every penalty (each begins where the stronger one ended), or for the chosen one."""
    out, start = [], None
    for penalty in PENALTIES if chosen is None else PENALTIES[chosen : chosen + 1]:
        start = fit_probe(x, rows.targets, rows.classes, penalty, start=start)
        out.append(start.probabilities(new))
    return out


def _sigmoid_path(x: np.ndarray, rows: Labelled, new: np.ndarray, chosen: int | None) -> list[np.ndarray]:
    """As `_softmax_path`, one logistic regression per class."""
    mean, spread = scaling(x)
    x, new = (x - mean) / spread, (new - mean) / spread
    width, classes = x.shape[1], rows.targets.shape[1]
    out, flat = [], np.zeros((width + 1) * classes)
    for penalty in PENALTIES if chosen is None else PENALTIES[chosen : chosen + 1]:

        def loss(flat: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            weights, bias = flat[:-classes].reshape(width, classes), flat[-classes:]
            scores = x @ weights + bias
            value = float((np.logaddexp(0, scores) - rows.targets * scores).sum(1).mean() + penalty / 2 * np.sum(weights**2))
            error = (sigmoid(scores) - rows.targets) / len(x)
            return value, np.concatenate([(x.T @ error + penalty * weights).reshape(-1), error.sum(0)])

        flat = minimise(loss, flat, STEPS)
        out.append(sigmoid(new @ flat[:-classes].reshape(width, classes) + flat[-classes:]))
    return out


def _ridge_path(x: np.ndarray, rows: Labelled, new: np.ndarray, chosen: int | None) -> list[np.ndarray]:
    """Ridge regression for every penalty from one singular value decomposition."""
    mean, spread = scaling(x)
    middle = rows.targets.mean(0)
    left, values, right = np.linalg.svd((x - mean) / spread, full_matrices=False)
    projected = left.T @ (rows.targets - middle)
    moved = (new - mean) / spread @ right.T
    penalties = RIDGE_PENALTIES if chosen is None else RIDGE_PENALTIES[chosen : chosen + 1]
    return [moved @ (projected * (values / (values**2 + penalty * len(x)))[:, None]) + middle for penalty in penalties]


def scaling(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of every feature; 1 where it does not vary."""
    mean, spread = x.mean(0), x.std(0)
    return mean, np.where(spread > 1e-6 * (np.abs(mean) + 1e-12), spread, 1.0)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * scores))


# -- nearest neighbours -----------------------------------------------------------------------------------------------------------


def neighbour_scores(x: np.ndarray, rows: Labelled, held: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Share of each class among the nearest other rows by cosine (f64[held, C]), or their mean target.

    Equal shares are decided by the sum of cosines.
    """
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1.0)
    cosines = unit[held] @ unit[~held].T
    count = min(neighbours, cosines.shape[1])
    nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    targets = rows.targets[~held]
    if rows.problem != "single_label":
        return targets[nearest].mean(1)
    out = np.zeros((len(nearest), rows.classes))
    closeness = np.take_along_axis(cosines, nearest, 1)
    row = np.arange(len(nearest))
    for place in range(count):
        out[row, targets[nearest[:, place]]] += (1.0 + 1e-6 * closeness[:, place]) / count
    return out


# -- LogME --------------------------------------------------------------------------------------------------------------------------


def logme(features: np.ndarray, rows: Labelled) -> float:
    """Log of the maximum evidence that a Bayesian linear model of the features gives to the labels, per example.

    You, Liu, Wang and Long 2021, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning": weights ~ N(0, 1/alpha), noise
    ~ N(0, 1/beta), both chosen by MacKay's fixed point; the mean over classes (one against the others) or over targets.
    """
    targets = rows.targets
    if rows.problem == "single_label":
        present = np.unique(targets)
        targets = (targets[:, None] == present[None]).astype(np.float64)
    left, values, _ = np.linalg.svd(np.asarray(features, np.float64), full_matrices=False)
    kept = values > 1e-7 * max(float(values.max()), 1e-300)  # directions that no row has say nothing
    left, squares = left[:, kept], values[kept] ** 2
    return float(np.mean([_evidence(squares, left.T @ y, float(y @ y), *features.shape) for y in targets.T]))


def _evidence(squares: np.ndarray, projected: np.ndarray, total: float, rows: int, width: int, steps: int = 100) -> float:
    """Evidence of one target vector, from squared singular values and the target's projections on the left singular vectors."""
    outside = max(total - float(projected @ projected), 0.0)  # what no weights can explain
    tiny = 1e-12 * max(total, 1e-300)
    alpha, beta = 1.0, 1.0
    for _ in range(steps):
        ratio = alpha / beta
        shrink = squares / (squares + ratio)
        effective = float(shrink.sum())
        norm = float((squares * (projected / (squares + ratio)) ** 2).sum())
        error = float(((1 - shrink) * projected) @ ((1 - shrink) * projected)) + outside
        before = ratio
        alpha = min(max(effective, 1e-9) / max(norm, tiny), 1e12)
        beta = min(max(rows - effective, 1e-9) / max(error, tiny), 1e12)
        if abs(alpha / beta - before) <= 1e-6 * before:
            break
    ratio = alpha / beta
    norm = float((squares * (projected / (squares + ratio)) ** 2).sum())
    error = float((((ratio / (squares + ratio)) * projected) ** 2).sum()) + outside
    unexplained = width - len(squares)  # directions that no row has: their share of log|A| is log(alpha) each
    curvature = float(np.log(alpha + beta * squares).sum()) + unexplained * np.log(alpha)
    evidence = rows * np.log(beta) + width * np.log(alpha) - rows * np.log(2 * np.pi) - beta * error - alpha * norm - curvature
    return float(evidence / (2 * rows))


# -- how predictions are judged -----------------------------------------------------------------------------------------------------


def usual_measure(problem: Problem, best: str) -> str:
    """The measure that is nearest to a task's metric `best`: where classes are to count alike, so they do here."""
    if problem == "regression":
        return "r2"
    if problem == "multi_label":
        return "f1_micro"
    return "f1" if best.startswith(("f1", "matthews", "auc")) and best not in ("f1_micro", "f1_weighted") else "accuracy"


def measure(rows: Labelled, held: np.ndarray, scores: np.ndarray) -> float:
    """The measure of the held-out rows' scores; higher is better, 1 is perfect."""
    truth = rows.targets[held]
    if rows.measure == "r2":
        return float(1 - ((scores - truth) ** 2).sum() / max(float(((truth - truth.mean(0)) ** 2).sum()), 1e-300))
    if rows.measure == "f1_micro":
        answers = scores > 0.5
        hits, all_of_them = float((answers * truth).sum()), float(answers.sum() + truth.sum())
        return 2 * hits / all_of_them if all_of_them else 0.0
    answers = scores.argmax(1)
    if rows.measure == "accuracy":
        return float((answers == truth).mean())
    hits = np.bincount(truth[answers == truth], minlength=rows.classes)
    both = np.bincount(truth, minlength=rows.classes) + np.bincount(answers, minlength=rows.classes)
    return float((2 * hits[both > 0] / both[both > 0]).mean())
