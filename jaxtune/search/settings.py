"""A search file: which experiment, which of its settings, by which strategy, within which budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from jaxtune.core.component import Component, OneOf, nearest
from jaxtune.core.errors import ConfigError
from jaxtune.search import PARAMETERS, STRATEGIES
from jaxtune.search.parameters import Choice, Parameter, as_list, look_up, owner_of
from jaxtune.search.strategies import TPE, Grid, Strategy

DEFAULT_TRIALS = 30


def _lists_are_choices(space: Any) -> Any:
    if not isinstance(space, Mapping):
        return space
    return {key: {"kind": "choice", "choices": value} if isinstance(value, list | tuple) else value for key, value in space.items()}


class Narrow(Component):
    """From broad to narrow: after each share of the trials the ranges shrink around the best."""

    keep: float = Field(default=0.2, gt=0, lt=1, description="The share of the trials so far that the new ranges enclose; at least two.")
    rounds: int = Field(default=2, ge=1, description="How often the ranges shrink; the trials are divided into one more part than that.")


class Finalists(Component):
    """The best trials again with other seeds, because one number of one seed may be luck."""

    count: int = Field(default=3, ge=1, description="How many of the best trials.")
    seeds: int = Field(default=3, ge=1, description="How many other seeds each; the winner has the best mean over these.")


class Search(Component):
    """The whole search file."""

    name: str = Field(min_length=1, description="name of the search's folder (and of the study in a shared storage)")
    experiment: str = Field(description="the experiment file, relative to the search file")
    set: dict[str, Any] = Field(default_factory=dict, description="dotted keys of the experiment with the value they have in every trial")
    space: Annotated[dict[str, Annotated[Parameter, OneOf(PARAMETERS)]], BeforeValidator(_lists_are_choices)] = Field(
        min_length=1, description="dotted keys of the experiment, each with a range {kind: float, low, high, log} or a list of choices"
    )
    strategy: Annotated[Strategy, OneOf(STRATEGIES)] = Field(
        default_factory=TPE, description="how settings are chosen and poor trials stopped, by kind"
    )
    trials: int | None = Field(
        default=None,
        ge=1,
        description=f"how many settings are tried; default: the whole grid, or {DEFAULT_TRIALS} where seconds is not set",
    )
    seconds: float | None = Field(default=None, gt=0, description="no trial begins once all trials together took so long")
    metric: str | None = Field(default=None, description="a validation metric of the experiment's task; default: the task's best")
    narrow: Narrow | None = Field(default=None, description="shrink the ranges around the best trials on the way")
    finalists: Finalists | None = Field(default=None, description="repeat the best trials with other seeds before one is named the winner")
    storage: str | None = Field(
        default=None,
        description="default: a journal in the search's folder; a URL such as postgresql://user@host/name lets many machines join (--worker)",
    )
    save_seconds: float = Field(
        default=60.0, ge=0, description="a running trial is saved at most this often; what a killed search has to do again"
    )
    seed: int = Field(default=0, ge=0, description="of the choice of settings; the experiment's own seed is another")

    @model_validator(mode="after")
    def sections_fit(self) -> Search:
        problems = []
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._\-]*", self.name):
            problems.append(f'name: "{self.name}" is no folder name; use letters, digits, ".", "_" and "-"')
        both = [key for key in self.space if key in self.set]
        problems += [f"set.{key}: stands in space as well; leave it out of one of them" for key in both]
        for key, parameter in self.space.items():
            for other, wanted in parameter.when.items():
                owner = owner_of(self.space, other)
                if owner is None or owner == key:
                    problems.append(f'space.{key}.when: "{other}" is no other key of the space{nearest(other, self.space)}')
                    continue
                decides = self.space[owner]
                if isinstance(decides, Choice):
                    known = [look_up({owner: choice}, other) for choice in decides.choices]
                    problems += [f"space.{key}.when: {other} is never {value}" for value in as_list(wanted) if value not in known]
        if not problems and (circle := self.circle()):
            problems.append(f"space: these keys wait for each other by `when`: {', '.join(circle)}")
        if self.narrow is not None:
            if self.trials is None:
                problems.append("narrow: needs `trials`, of which each round takes a part")
            elif self.trials < 2 * (self.narrow.rounds + 1):
                problems.append(f"narrow: {self.narrow.rounds} rounds need at least {2 * (self.narrow.rounds + 1)} trials")
            if isinstance(self.strategy, Grid):
                problems.append("narrow: a grid has its values from the start; leave narrow out, or choose another strategy")
        if problems:
            raise ConfigError(problems)
        return self

    def circle(self) -> list[str]:
        """Keys that cannot be brought into an order because of `when`."""
        return sorted(self.space.keys() - ordered(self.space).keys())


def ordered(space: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Keys without conditions first, in the order of the file; then those that depend on them. Keys that wait for each other are left out."""
    found: dict[str, Parameter] = {}
    while True:
        ready = {
            key: parameter
            for key, parameter in space.items()
            if key not in found and all(owner_of(space, other) in found for other in parameter.when)
        }
        if not ready:
            return found
        found |= ready
