"""One number that makes probabilities honest: logits divided by a temperature (Guo et al. 2017), fitted where the model was not trained.

The loss is convex in 1 / T, so its slope is followed by bisection: no step size, no start, and the same answer everywhere. Order and
answers do not change (a single label's greatest probability stays the greatest, 0.5 stays 0.5), only how sure they sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxtune.evaluation.analysis import Reliability, reliability
from jaxtune.evaluation.outcomes import Outcomes

COLDEST, HOTTEST = 0.05, 20.0
FEWEST = 20  # examples; fewer say nothing about a temperature
_LEAST = 1e-30  # of a probability, so that its logarithm is finite
_HALVINGS = 60


@dataclass(frozen=True)
class Rescaled:
    """What a temperature does to a split.

    Attributes:
        temperature: above 1 the model was too sure.
        fitted_on: the split it was fitted on; "halves" when each half of one split was fitted on the other, to have numbers not seen before.
        at_the_end: no temperature within the range is best (every answer right, for instance), so it is only a bound.
    """

    temperature: float
    fitted_on: str
    at_the_end: bool
    before: Reliability
    after: Reliability
    loss_before: float
    loss_after: float


def fit_temperature(outcomes: Outcomes) -> float:
    """The temperature with the least mean loss; one of its bounds when the loss falls all the way there. Classes only."""
    coldest, hottest = 1 / HOTTEST, 1 / COLDEST  # of 1 / T
    scores = logits(outcomes)
    if _slope(outcomes, scores, coldest) >= 0:
        return HOTTEST
    if _slope(outcomes, scores, hottest) <= 0:
        return COLDEST
    low, high = coldest, hottest
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _slope(outcomes, scores, middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def logits(outcomes: Outcomes) -> np.ndarray:
    """f64[n, C], from the probabilities: up to a constant per example (single label), or exactly (several labels)."""
    p = np.clip(outcomes.probabilities, _LEAST, 1.0)
    if outcomes.problem == "single_label":
        return np.log(p)
    return np.log(p) - np.log(np.clip(1.0 - outcomes.probabilities, _LEAST, 1.0))


def probabilities_at(outcomes: Outcomes, temperature: float) -> np.ndarray:
    """f64[n, C] as they would be with the logits divided by `temperature`."""
    return _probabilities(outcomes.problem, logits(outcomes) / temperature)


def rescale(outcomes: Outcomes, temperature: float, *, fitted_on: str, bins: int) -> Rescaled:
    """A split before and after."""
    return _compared(outcomes, probabilities_at(outcomes, temperature), temperature, fitted_on, bins)


def rescale_by_halves(outcomes: Outcomes, *, bins: int) -> Rescaled:
    """Where there is one split only: each half with the temperature of the other, and the temperature of the whole."""
    p = np.empty_like(outcomes.probabilities)
    for part in (0, 1):
        own, other = (np.arange(len(outcomes)) % 2 == part), (np.arange(len(outcomes)) % 2 != part)
        p[own] = probabilities_at(outcomes.take(own), fit_temperature(outcomes.take(other)))
    return _compared(outcomes, p, fit_temperature(outcomes), "halves", bins)


def _compared(outcomes: Outcomes, p: np.ndarray, temperature: float, fitted_on: str, bins: int) -> Rescaled:
    at_the_end = temperature in (COLDEST, HOTTEST)
    confidence = p.max(1) if outcomes.problem == "single_label" else p.reshape(-1)
    before, after = (reliability(values, outcomes.right, bins) for values in (outcomes.confidence, confidence))
    return Rescaled(temperature, fitted_on, at_the_end, before, after, _loss(outcomes, outcomes.probabilities), _loss(outcomes, p))


def _loss(outcomes: Outcomes, p: np.ndarray) -> float:
    if outcomes.problem == "single_label":
        return float(-np.log(np.clip(p[np.arange(len(p)), outcomes.truth], _LEAST, 1.0)).mean())
    return float(-np.log(np.clip(np.where(outcomes.truth, p, 1 - p), _LEAST, 1.0)).mean())


def _slope(outcomes: Outcomes, scores: np.ndarray, inverse: float) -> float:
    """Derivative of the mean loss by 1 / T."""
    p = _probabilities(outcomes.problem, scores * inverse)
    if outcomes.problem == "single_label":
        return float(((p * scores).sum(1) - scores[np.arange(len(scores)), outcomes.truth]).mean())
    return float(((p - outcomes.truth) * scores).mean())


def _probabilities(problem: str, scores: np.ndarray) -> np.ndarray:
    if problem == "single_label":
        raised = np.exp(scores - scores.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)
    return np.where(scores >= 0, 1 / (1 + np.exp(-np.abs(scores))), np.exp(-np.abs(scores)) / (1 + np.exp(-np.abs(scores))))
