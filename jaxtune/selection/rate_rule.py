"""Reads a learning rate off the losses of a range test (Smith 2017), or says that they do not give one.

The losses are smoothed over log rate to both sides: a running mean lags behind, and would put every reading at a higher rate than it
belongs to. Value and slope come from the same weighted line through the neighbours, so the slope is no difference of two noisy numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

STANDARD_ERRORS = 3.0  # by so many a fall or a rise must exceed the noise to be believed
DISAGREEMENT = 3.0  # largest over smallest suggestion of the seeds, above which they disagree
READINGS_APART = 10.0  # the same of the two readings
SAFETY = 10.0  # the largest stable rate is divided by this
BEGUN = 0.2  # share of the fall after which the steepest place is looked for
DECADES = 0.2  # standard deviation of the smoothing, in powers of ten of the rate


@dataclass(frozen=True)
class Smoothed:
    """Losses of a range test over the rates that every seed reached.

    Attributes:
        rates: f64[n], rising geometrically.
        seeds: f64[s, n], each seed's loss, smoothed.
        mean: f64[n], their mean; `spread`: their standard deviation, NaN for one seed.
        slope: f64[n], change of the mean loss per power of ten of the rate.
        error: f64[n], standard error of the mean from the batches' noise.
        noise: standard deviation of one batch's loss around the smoothed one.
    """

    rates: np.ndarray
    seeds: np.ndarray
    seed_slopes: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    slope: np.ndarray
    error: np.ndarray
    noise: float


@dataclass(frozen=True)
class Reading:
    """What a range test says.

    Attributes:
        rate: the suggestion, to two digits. Where `reasons` stand against it, what the mean curve reads all the same, or None.
        reasons: why there is no clear answer, each with what to do; empty when the answer is clear.
        steepest: rate of the steepest fall of the smoothed loss.
        largest_stable: rate of the lowest smoothed loss; above it the loss rises.
        seeds: each seed's own suggestion, None where its curve gives none.
        fall: how far the loss fell from its start, and `fall_error`, the standard error of that.
    """

    rate: float | None
    reasons: tuple[str, ...]
    steepest: float | None
    largest_stable: float | None
    seeds: tuple[float | None, ...]
    start: float
    lowest: float
    fall: float
    fall_error: float

    @property
    def clear(self) -> bool:
        return not self.reasons


def smooth(rates: np.ndarray, losses: np.ndarray) -> Smoothed:
    """Smooths the losses of all seeds.

    Args:
        rates: f64[n], rising geometrically.
        losses: f64[s, n]; NaN from the step at which a seed's test was stopped.
    """
    common = reached(losses)
    x, raw = np.log10(rates[:common]), losses[:, :common]
    width = bandwidth(x)
    values, slopes = local_lines(x, width)
    noise = noise_of(raw)
    capped = np.minimum(raw, cap(raw, noise, ends(x, width)))
    seeds, mean = capped @ values.T, capped.mean(axis=0) @ values.T
    spread = seeds.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(common, math.nan)
    error = noise * np.sqrt((values**2).sum(axis=1) / len(raw))
    return Smoothed(rates[:common], seeds, capped @ slopes.T, mean, spread, capped.mean(axis=0) @ slopes.T, error, noise)


def read(rates: np.ndarray, losses: np.ndarray, broke: np.ndarray) -> Reading:
    """The suggestion of a range test: the geometric mean of the steepest rate and a tenth of the largest stable one.

    The first is where the loss reacts most; the second is as far below trouble as practice keeps. They err in different ways: the
    steepest rate wanders with noise, the lowest loss with how long the test was.

    Args:
        rates, losses: as for `smooth`.
        broke: bool[s], whether a seed's test was stopped because its loss broke.
    """
    common = reached(losses)
    if common < 5:
        why = f"the loss broke within {common + 1} steps; the lowest rate is too high already: lower --low by a factor of 1000"
        return Reading(None, (why,), None, None, (None,) * len(losses), math.nan, math.nan, math.nan, math.nan)
    curve = smooth(rates, losses)
    x = np.log10(curve.rates)
    first = ends(x, bandwidth(x))
    start, bottom = float(curve.mean[:first].mean()), int(np.argmin(curve.mean))
    fall = start - float(curve.mean[bottom])
    fall_error = math.hypot(float(curve.error[bottom]), curve.noise / math.sqrt(first * len(losses)))
    facts = {"start": start, "lowest": float(curve.mean[bottom]), "fall": fall, "fall_error": fall_error}
    nothing = (None,) * len(losses)
    if fall <= STANDARD_ERRORS * fall_error:
        return Reading(None, (no_fall(curve, start, fall, fall_error, bool(broke.any())),), None, None, nothing, **facts)
    rise_error = math.hypot(float(curve.error[bottom]), float(curve.error[-1]))
    if not broke.any() and float(curve.mean[-1] - curve.mean[bottom]) <= STANDARD_ERRORS * rise_error:
        why = (
            f"at the highest rate, {curve.rates[-1]:.1e}, the loss had not begun to rise: widen the range with --high {10 * rates[-1]:.0e}"
        )
        return Reading(None, (why,), None, None, nothing, **facts)

    both = pair(curve.rates, curve.mean, curve.slope, first)
    if both is None:
        why = f"the loss rises from the lowest rate on, {rates[0]:.1e}: widen the range with --low {rates[0] / 100:.0e}"
        return Reading(None, (why,), None, None, nothing, **facts)
    steepest, stable = both
    reasons = []
    if math.log10(steepest) - x[0] < 2 * bandwidth(x):
        reasons.append(f"the loss falls fastest at the low end of the range: widen it with --low {rates[0] / 100:.0e}")
    if not 1 / READINGS_APART <= steepest * SAFETY / stable <= READINGS_APART:
        reasons.append(
            f"the two readings lie more than {READINGS_APART:g} times apart ({steepest:.1e} and {stable / SAFETY:.1e}): "
            "more --steps or --seeds make the curve smoother"
        )
    pairs = [pair(curve.rates, mean, slope, first) for mean, slope in zip(curve.seeds, curve.seed_slopes, strict=True)]
    own = tuple(None if found is None else combined(*found) for found in pairs)
    known = [rate for rate in own if rate is not None]
    if len(known) < len(own) or max(known) > DISAGREEMENT * min(known):
        told = ", ".join("none" if rate is None else f"{rate:.1e}" for rate in own)
        reasons.append(f"the seeds disagree by more than {DISAGREEMENT:g} times ({told}): more --steps or --seeds may settle it")
    return Reading(combined(steepest, stable), tuple(reasons), steepest, stable, own, **facts)


# -- parts ------------------------------------------------------------------------------------------------------------------


def pair(rates: np.ndarray, mean: np.ndarray, slope: np.ndarray, first: int) -> tuple[float, float] | None:
    """(steepest, largest stable) rate of a smoothed curve; None when it only rises.

    The steepest is looked for from where a fifth of the fall is done, for good: before, the slope is noise, most of all at the ends.
    """
    bottom = int(np.argmin(mean))
    start = float(mean[:first].mean())
    begun = np.flatnonzero(mean[:bottom] > start - BEGUN * (start - float(mean[bottom])))
    left = int(begun[-1]) if len(begun) else 0
    steep = left + int(np.argmin(slope[left : bottom + 1]))
    return (float(rates[steep]), float(rates[bottom])) if bottom and slope[steep] < 0 else None


def combined(steepest: float, stable: float) -> float:
    return two_digits(math.sqrt(steepest * stable / SAFETY))


def two_digits(rate: float) -> float:
    return float(f"{rate:.1e}")


def no_fall(curve: Smoothed, start: float, fall: float, fall_error: float, broke: bool) -> str:
    rises = broke or float(curve.mean[-1]) - start > STANDARD_ERRORS * float(curve.error[-1])
    what = f"the loss never falls by more than noise ({fall:.3f} with a standard error of {fall_error:.3f})"
    advice = "more --steps between the same rates, or a larger batch, show smaller effects"
    higher = (
        "widen the range with --high; a frozen or missing part (phases.N.train), or labels that do not fit the inputs, look like this too"
    )
    return f"{what}, before it rises: {advice}" if rises else f"{what}: {higher}"


def reached(losses: np.ndarray) -> int:
    """Steps that every seed got to with a finite loss."""
    bad = ~np.isfinite(losses).all(axis=0)
    return int(np.argmax(bad)) if bad.any() else losses.shape[1]


def bandwidth(x: np.ndarray) -> float:
    """Standard deviation of the smoothing, in powers of ten; at least one and a half steps."""
    return max(DECADES, 1.5 * float(x[1] - x[0]))


def ends(x: np.ndarray, width: float) -> int:
    """How many of the first steps make up the start: twice the smoothing's width, at least 3, at most a quarter of all."""
    steps = round(2 * width / float(x[1] - x[0]))
    return max(3, min(steps, len(x) // 4))


def local_lines(x: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """(values, slopes), each f64[n, n]: a matrix times the losses is the value or slope of the line fitted around each x by least squares
    with Gaussian weights (Cleveland 1979). A straight line comes out as it went in, at the ends too."""
    offset = x[None, :] - x[:, None]
    weight = np.exp(-0.5 * (offset / width) ** 2)
    s0, s1, s2 = (np.sum(weight * offset**power, axis=1, keepdims=True) for power in (0, 1, 2))
    determinant = s0 * s2 - s1**2
    return weight * (s2 - s1 * offset) / determinant, weight * (s0 * offset - s1) / determinant


def noise_of(raw: np.ndarray) -> float:
    """Standard deviation of the batches' noise, from differences of neighbours: what the curve itself does hardly enters, and by the median
    neither does the end, where the loss leaps."""
    return float(np.median(np.abs(np.diff(raw, axis=1)))) / (0.6745 * math.sqrt(2.0))


def cap(raw: np.ndarray, noise: float, first: int) -> float:
    """A loss above which more says no more: as far above the start as the lowest lies below it. One broken batch would else lift the
    smoothed loss of rates that were fine."""
    start = float(np.median(raw[:, :first]))
    lowest = float(np.min(np.median(np.lib.stride_tricks.sliding_window_view(raw.mean(axis=0), 3), axis=1)))
    return start + max(start - lowest, 4.0 * noise)
