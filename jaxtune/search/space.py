"""An experiment with some of its settings left open: every key and both ends of every range are tried on it before anything trains."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.config.document import Document, get, load_document, split_key
from jaxtune.config.read import apply_overrides, build
from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable
from jaxtune.experiment import Experiment
from jaxtune.search.parameters import Parameter, as_list, is_active, look_up, owner_of
from jaxtune.search.settings import Search, ordered

Settings = Mapping[str, Any]
SHOWN = 6  # problems of one key; a wrong range is wrong at both ends


@dataclass(frozen=True)
class Space:
    """
    Attributes:
        file: the experiment's file.
        document: the experiment with what is the same in every trial.
        fixed: those dotted overrides.
        base: the experiment without any searched setting.
        parameters: in an order in which conditions come before what depends on them.
    """

    file: Path
    document: Document
    fixed: Settings
    base: Experiment
    parameters: Mapping[str, Parameter]

    @classmethod
    def open(cls, search: Search, where: Callable[[tuple[str, ...]], str] = lambda key: key[0]) -> Space:
        """Reads the experiment and tries every searched value on it.

        Args:
            where: key of the search file -> where it was written, for messages.

        Raises:
            ConfigError: the experiment does not stand by itself, or a key or a value of the space does not fit it; all problems at once.
        """
        file = Path(search.experiment).expanduser()
        document = load_document(file)
        fixed = dict(search.set) | ({} if search.metric is None else {"task.best": search.metric})
        base, problems = tried(document, fixed)
        if base is None:
            raise ConfigError([f"{where(('experiment',))}: {problem}" for problem in problems])
        merged = apply_overrides(document, words(fixed), Experiment)
        space = cls(file, merged, fixed, base, ordered(search.space))
        found = [f"{where(('space', key))}: {problem}" for key in search.space for problem in space.problems(key)]
        if found:
            raise ConfigError(dict.fromkeys(found))
        return space

    def experiment(self, settings: Settings) -> Experiment:
        """The experiment of one trial.

        Raises:
            ConfigError: these settings do not go together.
        """
        found, problems = tried(self.document, settings)
        if found is None:
            raise ConfigError(problems)
        return found

    def problems(self, key: str) -> list[str]:
        """What is wrong with the values of one key. A value is good when it is good beside some values of the other keys."""
        found: list[str] = []
        needed = self.conditions(key)
        for value in self.parameters[key].probes:
            first: list[str] = []
            for pick in (None, 0, -1):
                others = {} if pick is None else self.everywhere(pick, needed)
                accepted, problems = tried(self.document, {**others, **needed, key: value})
                if accepted is not None:
                    break
                first = first or problems
            else:
                unknown = [problem for problem in first if problem.startswith("unknown setting")]
                if unknown:  # for every value alike
                    return unknown
                found += [f"with the value {printable(json.dumps(value))}: {problem}" for problem in first]
        return found[:SHOWN]

    def conditions(self, key: str) -> dict[str, Any]:
        """Values of other keys under which a key is searched."""
        needed: dict[str, Any] = {}
        for other, wanted in self.parameters[key].when.items():
            owner = owner_of(self.parameters, other)
            assert owner is not None, "Search has checked it"
            allowed = as_list(wanted)
            values = getattr(self.parameters[owner], "choices", allowed)
            needed |= self.conditions(owner) | {owner: next(v for v in values if look_up({owner: v}, other) in allowed)}
        return needed

    def everywhere(self, pick: int, needed: Settings) -> dict[str, Any]:
        """Every active key at its first or last value."""
        chosen: dict[str, Any] = {}
        for key, parameter in self.parameters.items():
            if key in needed:
                chosen[key] = needed[key]
            elif is_active(parameter, chosen):
                chosen[key] = parameter.probes[pick]
        return chosen

    def suggest(self, trial: Any, parameters: Mapping[str, Parameter]) -> dict[str, Any]:
        """The settings of an Optuna trial; `parameters` are these or narrower ones."""
        settings: dict[str, Any] = {}
        for key in self.parameters:
            if is_active(self.parameters[key], settings):
                settings[key] = parameters[key].value(ask(trial, key, parameters[key].distribution()))
        return settings

    @property
    def higher_is_better(self) -> bool:
        return self.base.task.higher_is_better

    @property
    def metric(self) -> str:
        return self.base.task.best


def ask(trial: Any, key: str, distribution: Any) -> Any:
    """One value from Optuna."""
    if hasattr(distribution, "choices"):
        return trial.suggest_categorical(key, distribution.choices)
    suggest = trial.suggest_int if isinstance(distribution.low, int) else trial.suggest_float
    step = {} if distribution.step is None else {"step": distribution.step}
    return suggest(key, distribution.low, distribution.high, log=distribution.log, **step)


def tried(document: Document, settings: Settings) -> tuple[Experiment | None, list[str]]:
    """The experiment with these settings, or what is wrong with it."""
    try:
        return build(apply_overrides(document, words(settings), Experiment), Experiment), []
    except ConfigError as error:
        return None, [problem.removeprefix("command line: ") for problem in error.problems]


def words(settings: Settings) -> list[str]:
    """Settings as `key=value` words, sections before what stands inside them."""
    return [f"{key}={json.dumps(settings[key], ensure_ascii=False)}" for key in sorted(settings, key=lambda key: key.count("."))]


def overlay(space: Space, settings: Settings) -> dict[str, Any]:
    """What a file that `extends:` the experiment must say to become the trial's: sections are merged, but a list is replaced whole."""
    changes = {**space.fixed, **settings}
    merged = apply_overrides(space.document, words(settings), Experiment).data
    out: dict[Any, Any] = {}
    for key in sorted((split_key(key) for key in changes), key=len):
        depth = next((index for index, part in enumerate(key) if isinstance(part, int)), len(key))
        if key[-1] == "kind" and depth == len(key):
            depth -= 1  # the section of another kind starts afresh, so all of it is said
        place = key[:depth]
        target = out
        for part in place[:-1]:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        target[place[-1]] = get(merged, place)
    return out


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key by as few of its last words as tell it from the others."""
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if not any(other != key and (other == name or other.endswith("." + name)) for other in keys):
                break
        names[key] = name
    return names
