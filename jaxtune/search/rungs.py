"""Who goes on at a rung: asynchronous successive halving, and Hyperband's brackets of it.

The answer is a function of the curves alone, kept in the storage, so that a search that was killed asks again and hears the same. Optuna's
own pruner notes that a rung was passed before the trial's end is noted; a kill between the two would let the trial live.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = Mapping[int, float]  # step of an evaluation -> the best value so far


@dataclass(frozen=True)
class Past:
    """What another trial showed."""

    number: int
    curve: Curve
    ended: bool  # it trained to its end


@dataclass(frozen=True)
class Rungs:
    """
    Attributes:
        ladders: per bracket the steps of its rungs; the last bracket may have none, its trials are never stopped.
        shares: per bracket the share of the trials.
    """

    reduction: int
    ladders: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, lowest: int, steps: int, reduction: int, brackets: int | None = None) -> Rungs:
        """Rungs at lowest x reduction^k below `steps`; bracket b leaves out the b lowest. Shares as in the Hyperband paper."""
        whole = []
        while lowest * reduction ** len(whole) < steps:
            whole.append(lowest * reduction ** len(whole))
        most = len(whole)
        count = min(brackets or most + 1, most + 1)
        ladders = tuple(tuple(whole[bracket:]) for bracket in range(count))
        sizes = [math.ceil((most + 1) * reduction ** (most - bracket) / (most - bracket + 1)) for bracket in range(count)]
        return cls(reduction, ladders, tuple(size / sum(sizes) for size in sizes))

    def bracket(self, number: int) -> int:
        """The bracket of a trial: at every moment the brackets have about their shares of the trials."""
        counts = [0] * len(self.shares)
        for total in range(1, number + 2):
            chosen = max(range(len(counts)), key=lambda bracket: (self.shares[bracket] * total - counts[bracket], -bracket))
            counts[chosen] += 1
        return chosen

    def stopped_at(self, number: int, curve: Curve, others: Sequence[Past], higher_is_better: bool) -> int | None:
        """The rung (its step) that trial `number` has just reached and does not leave upwards; None: it goes on.

        A trial is at a rung at its first evaluation there or above. It goes on when it is among the best 1 / reduction of all trials of its
        bracket that were there so far, itself included; the best one always is.
        """
        bracket = self.bracket(number)
        rivals = [past for past in others if past.number != number and self.bracket(past.number) == bracket]
        now = max(curve)
        for rung in self.ladders[bracket]:
            reached = [step for step in curve if step >= rung]
            if not reached or min(reached) != now:
                continue
            values = [value for past in rivals if (value := value_at(past, rung)) is not None]
            if not goes_on(curve[now], values, self.reduction, higher_is_better):
                return rung
        return None


def value_at(past: Past, rung: int) -> float | None:
    """What a trial had when it came to a rung; one that ended by itself before counts with what it ended with."""
    reached = [step for step in past.curve if step >= rung]
    if reached:
        return past.curve[min(reached)]
    return past.curve[max(past.curve)] if past.ended and past.curve else None


def goes_on(value: float, rivals: Sequence[float], reduction: int, higher_is_better: bool) -> bool:
    if not math.isfinite(value):
        return False
    sign = 1.0 if higher_is_better else -1.0
    ranked = sorted((sign * rival for rival in [*rivals, value] if math.isfinite(rival)), reverse=True)
    return sign * value >= ranked[max(1, (len(rivals) + 1) // reduction) - 1]
