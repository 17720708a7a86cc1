"""A few rates trained for a few dozen steps each on the phase's real schedule, pressed together, and compared by validation loss.

A second opinion on a range test: that one sees training losses while the rate rises; this one sees what a whole course of the schedule is
good for, if only a short one. Rates share seeds, so the order of the data and the fresh head are the same for all of them, and their
differences are surer than each loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from jaxtune.selection.rate_rule import two_digits
from jaxtune.selection.scores import t_quantile
from jaxtune.selection.short_trainings import ShortTrainings, Step
from jaxtune.training.schedules.base import Schedule

FACTOR = math.sqrt(10.0)  # between neighbours
FURTHER = 2  # rates that join at most where the best one lies at an end


@dataclass(frozen=True)
class Racer:
    """One rate. A training that broke has the loss infinity.

    Attributes:
        losses: the validation loss per seed; `low` and `high` enclose the mean with 95 % (Student's t), None for one seed.
        behind: mean difference to the best rate, over the same seeds; `clearly`: its interval lies above 0.
    """

    rate: float
    losses: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    behind: float
    clearly: bool


@dataclass(frozen=True)
class Race:
    """
    Attributes:
        steps: of each training; `examples`: of the validation split that were measured.
        best: the rate of the lowest mean loss, None when every rate broke.
    """

    racers: tuple[Racer, ...]
    steps: int
    examples: int
    best: float | None

    def of(self, rate: float) -> Racer:
        return min(self.racers, key=lambda racer: abs(math.log(racer.rate / rate)))


def rates_around(centre: float, count: int) -> tuple[float, ...]:
    """`count` rates half a power of ten apart with the centre among them; with an even count the additional one lies below, because range
    tests are short and err upwards."""
    below = count // 2
    return tuple(two_digits(centre * FACTOR ** (number - below)) for number in range(count))


def run_race(
    trainings: ShortTrainings, rates: Sequence[float], seeds: Sequence[int], steps: int, told: Callable[[str], None] = lambda line: None
) -> Race:
    """Trains every rate with every seed for `steps` steps (or the phase's, where those are fewer). While the best rate is the lowest or the
    highest of them, one beyond it joins, FURTHER times at most: a best at the end may lie anywhere beyond it."""
    phase = trainings.session.prepared.experiment.phases[trainings.number]
    shape = pressed(phase.optimizer.schedule, trainings.total, min(steps, trainings.total))
    examples = 0

    def trained(rate: float) -> list[float]:
        nonlocal examples
        losses = []
        for seed in seeds:
            with closing(trainings.train(seed, [rate * share for share in shape])) as course:
                whole = holds(course, phase.skip_limit)
            loss = math.inf
            if whole:
                metrics, examples = trainings.evaluate()
                loss = metrics["loss"] if math.isfinite(metrics["loss"]) else math.inf
            losses.append(loss)
        mean = sum(losses) / len(losses)
        told(f"race: rate {rate:.1e}, {f'validation loss {mean:.4g}' if math.isfinite(mean) else 'broke'}")
        return losses

    raced = {rate: trained(rate) for rate in rates}
    for _ in range(FURTHER):
        beyond = further(raced)
        if beyond is None:
            break
        raced[beyond] = trained(beyond)
    order = sorted(raced)
    return judge(order, np.array([raced[rate] for rate in order]), len(shape), examples)


def further(raced: Mapping[float, Sequence[float]]) -> float | None:
    """The rate beyond the best one of several, where that is the lowest or the highest; None where it is not, or every rate broke."""
    order = sorted(raced)
    best = min(order, key=lambda rate: sum(raced[rate]))
    if len(order) < 2 or not math.isfinite(sum(raced[best])):
        return None
    return {order[0]: two_digits(best / FACTOR), order[-1]: two_digits(best * FACTOR)}.get(best)


def holds(course: Iterable[Step], skip_limit: int) -> bool:
    """Whether a training runs to its end: it breaks as a run does, by `skip_limit` steps in a row that are not finite."""
    in_a_row = 0
    for step in course:
        in_a_row = 0 if step.finite else in_a_row + 1
        if in_a_row >= skip_limit:
            return False
    return True


def judge(rates: Sequence[float], losses: np.ndarray, steps: int, examples: int) -> Race:
    """Compares the rates' losses f64[rates, seeds]."""
    means = losses.mean(axis=1)
    best = int(np.argmin(means))
    alive = math.isfinite(means[best])
    racers = []
    for rate, row in zip(rates, losses, strict=True):
        half = half_width(row)
        behind = row - losses[best] if alive else np.full(len(row), math.nan)
        apart = half_width(behind)
        mean = float(row.mean())
        clearly = not math.isfinite(mean) or (apart is not None and float(behind.mean()) > apart)
        low, high = (None, None) if half is None else (mean - half, mean + half)
        racers.append(Racer(rate, tuple(map(float, row)), mean, low, high, float(behind.mean()), clearly))
    return Race(tuple(racers), steps, examples, rates[best] if alive else None)


def half_width(values: np.ndarray) -> float | None:
    """Half the 95 % interval of the mean of a few values; None for one value or for broken ones."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


def pressed(schedule: Schedule, total: int, steps: int) -> list[float]:
    """The schedule of a phase of `total` steps over `steps` steps, as shares of its highest rate; each step stands for the middle of its
    part of the phase. So warm-up and decay keep their share, also where they are given in steps."""
    rates = [schedule.at(int((number + 0.5) * total / steps), total) for number in range(steps)]
    highest = highest_rate(schedule, total)
    return [rate / highest for rate in rates]


def highest_rate(schedule: Schedule, total: int) -> float:
    """The rate that a schedule is known by: its `peak` or `rate`, else the highest it comes to."""
    named = getattr(schedule, "peak", getattr(schedule, "rate", None))
    if isinstance(named, float):
        return named
    return max(schedule.at(int(step), total) for step in np.unique(np.linspace(0, total - 1, min(total, 5000)).astype(int)))
