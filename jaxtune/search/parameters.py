"""What one searched setting may be: a range of numbers, or a list of choices, perhaps only where another setting has a certain value.

A number is rounded to four digits before it is used, so that the winner's file reads well and still holds the very numbers that trained.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from jaxtune.core.component import Component

DIGITS = 4
MARGIN = 0.1  # of the old range, left on both sides of the best when it narrows


class Parameter(Component):
    """One key of `space:`."""

    when: dict[str, Any] = Field(
        default_factory=dict,
        description="Searched only where these other keys of the space (or settings inside them) have this value, or one of a list of values.",
    )

    @property
    @abstractmethod
    def probes(self) -> tuple[Any, ...]:
        """Values that the experiment must accept before anything runs."""

    @abstractmethod
    def distribution(self) -> Any:
        """As Optuna knows it."""

    @abstractmethod
    def value(self, stored: Any) -> Any:
        """The setting's value for what Optuna stores."""

    @abstractmethod
    def stored(self, value: Any) -> Any:
        """What Optuna stores for a value."""

    @abstractmethod
    def grid(self, points: int) -> tuple[Any, ...]:
        """The values that a grid takes; of a range without steps `points` values."""

    def narrowed(self, best: Sequence[Any]) -> Self:
        """The range around the values of the best trials; choices stay."""
        del best
        return self


class Range(Parameter):
    """Settings that Float and Int share."""

    low: float = Field(description="The least value.")
    high: float = Field(description="The greatest value.")
    log: bool = Field(default=False, description="Search the logarithm: as many values from 1e-5 to 1e-4 as from 1e-4 to 1e-3.")
    step: float | None = Field(default=None, gt=0, description="Only low, low + step, low + 2 step, ...; default: any value.")

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError("low and high must be finite")
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; raise it above 0, or leave log out")
        if self.log and self.step is not None:
            raise ValueError("log and step do not go together; leave one of them out")
        return self

    @property
    def probes(self) -> tuple[Any, ...]:
        return (self.value(self.low), self.value(self.high))

    def stored(self, value: Any) -> Any:
        return value

    def spaced(self, points: int) -> np.ndarray:
        """`points` numbers from low to high, evenly on the scale that is searched."""
        return np.geomspace(self.low, self.high, points) if self.log else np.linspace(self.low, self.high, points)

    def around(self, best: Sequence[Any]) -> tuple[float, float]:
        """(low, high) of the best values with a margin, inside the old range."""
        scale, back = (math.log, math.exp) if self.log else (float, float)
        margin = MARGIN * (scale(self.high) - scale(self.low))
        low = max(self.low, back(scale(min(best)) - margin))
        high = min(self.high, back(scale(max(best)) + margin))
        return low, high


class Float(Range):
    """A range of numbers."""

    def distribution(self) -> Any:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, stored: Any) -> Any:
        rounded = float(f"{float(stored):.{DIGITS}g}")
        return min(max(rounded, float(self.low)), float(self.high))

    def grid(self, points: int) -> tuple[Any, ...]:
        if self.step is None:
            values = self.spaced(points)
        else:
            values = self.low + self.step * np.arange(math.floor((self.high - self.low) / self.step + 1e-9) + 1)
        return tuple(self.value(value) for value in values)

    def narrowed(self, best: Sequence[Any]) -> Self:
        low, high = self.around(best)
        if self.step is not None:  # the steps stay where they were
            low = self.low + self.step * math.floor((low - self.low) / self.step + 1e-9)
            high = min(self.high, self.low + self.step * math.ceil((high - self.low) / self.step - 1e-9))
        if low >= high:
            return self
        return self.model_copy(update={"low": float(f"{low:.{DIGITS}g}"), "high": float(f"{high:.{DIGITS}g}")})


class Int(Range):
    """A range of whole numbers."""

    low: int = Field(description="The least value.")
    high: int = Field(description="The greatest value.")
    step: int | None = Field(default=None, ge=1, description="Only low, low + step, low + 2 step, ...; default: every whole number.")

    def distribution(self) -> Any:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step or 1)

    def value(self, stored: Any) -> Any:
        return int(stored)

    def grid(self, points: int) -> tuple[Any, ...]:
        every = range(self.low, self.high + 1, self.step or 1)
        if self.step is not None or len(every) <= points:
            return tuple(every)
        return tuple(dict.fromkeys(round(value) for value in self.spaced(points)))

    def narrowed(self, best: Sequence[Any]) -> Self:
        low, high = self.around(best)
        step = self.step or 1
        first = self.low + step * math.floor((low - self.low) / step + 1e-9)
        last = min(self.high, self.low + step * math.ceil((high - self.low) / step - 1e-9))
        return self if first >= last else self.model_copy(update={"low": first, "high": last})


class Choice(Parameter):
    """A list of values, which may be whole sections. In YAML a bare list is enough."""

    choices: tuple[Any, ...] = Field(min_length=1, description="The values, in any order; each may be a section or a list.")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        labels = [label(choice) for choice in self.choices]
        twice = [name for name in dict.fromkeys(labels) if labels.count(name) > 1]
        if twice:
            raise ValueError(f"choices: {', '.join(twice)} is given twice")
        return self

    @property
    def probes(self) -> tuple[Any, ...]:
        return self.choices

    def distribution(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([label(choice) for choice in self.choices])

    def value(self, stored: Any) -> Any:
        return next(choice for choice in self.choices if label(choice) == stored)

    def stored(self, value: Any) -> Any:
        return label(value)

    def grid(self, points: int) -> tuple[Any, ...]:
        return self.choices


def label(value: Any) -> str:
    """A value as JSON: distinct for 1, 1.0, true and "1", and legible in a storage; NaN and infinity are no settings."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def owner_of(space: Iterable[str], key: str) -> str | None:
    """The searched key that decides the setting `key`: itself, or a section around it."""
    found = [known for known in space if key == known or key.startswith(known + ".")]
    return max(found, key=len, default=None)


def look_up(settings: Mapping[str, Any], key: str) -> Any:
    """A setting among chosen ones, which may stand inside a chosen section; None where nothing is chosen."""
    owner = owner_of(settings, key)
    value = None if owner is None else settings[owner]
    if owner is None or owner == key:
        return value
    for part in key[len(owner) + 1 :].split("."):
        value = {"kind": value} if isinstance(value, str) else value
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def as_list(wanted: Any) -> list[Any]:
    """The values that a condition allows."""
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def is_active(parameter: Parameter, settings: Mapping[str, Any]) -> bool:
    """Whether the conditions of a parameter hold among settings chosen before it."""
    return all(owner_of(settings, key) is not None and look_up(settings, key) in as_list(wanted) for key, wanted in parameter.when.items())
