"""How settings are chosen, by kind: a grid, chance, or a model of what the trials so far showed; and how poor trials are stopped early.

Optuna's samplers are seeded anew for every trial and key from the search's seed and the trial's number. So what a trial is given depends on
the finished trials alone, not on how many random numbers were drawn before: a search that was killed and goes on chooses what it would have
chosen.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.search import STRATEGIES
from jaxtune.search.parameters import Parameter, is_active
from jaxtune.search.rungs import Rungs

MOST_ROWS = 100_000  # of a grid, which is listed before it begins


class Strategy(Component):
    """Chooses the settings of a trial."""

    @abstractmethod
    def make_sampler(self, seed: int) -> Any:
        """An Optuna sampler (or what answers `sample_relative` and `sample_independent` like one) for one trial."""

    def rows(self, parameters: Mapping[str, Parameter], seed: int) -> list[dict[str, Any]] | None:
        """Every setting that will be tried, in order, where that is known from the start.

        Raises:
            ConfigError: there are too many.
        """
        del parameters, seed
        return None

    def rungs(self, steps: int, every: int | None) -> Rungs | None:
        """Where poor trials are stopped, in a training of `steps` steps that is evaluated every `every` steps; None: nowhere."""
        del steps, every
        return None


class Grid(Strategy):
    """Every combination, in an order shuffled by the seed, so that a part of the grid is spread over all of it."""

    points: int = Field(default=3, ge=2, description="How many values are taken from a range without steps, evenly on its scale.")

    def make_sampler(self, seed: int) -> Any:
        raise AssertionError("a grid lists its rows")

    def rows(self, parameters: Mapping[str, Parameter], seed: int) -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = [{}]
        for key, parameter in parameters.items():
            values = parameter.grid(self.points)
            if len(found) * len(values) > MOST_ROWS:
                raise ConfigError(
                    f"strategy: the grid has more than {MOST_ROWS:,} settings; give fewer values or points, or choose random, tpe or hyperband"
                )
            found = [
                {**row, **new} for row in found for new in (({key: value} for value in values) if is_active(parameter, row) else ({},))
            ]
        order = np.random.default_rng(seed).permutation(len(found))
        return [found[i] for i in order]


class Random(Strategy):
    """Every setting by chance, apart from the others (Bergstra and Bengio 2012)."""

    def make_sampler(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


class TPE(Strategy):
    """Tree-structured Parzen estimators (Bergstra et al. 2011), jointly over all keys without a condition; Optuna's."""

    startup: int = Field(default=8, ge=1, description="So many trials by chance first.")

    def make_sampler(self, seed: int) -> Any:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=self.startup)


class GP(Strategy):
    """A Gaussian process with expected improvement (Jones et al. 1998): most out of few trials, for up to about ten numbers."""

    startup: int = Field(default=8, ge=2, description="So many trials by chance first.")

    def make_sampler(self, seed: int) -> Any:
        from jaxtune.search.gaussian import GaussianProcess

        return GaussianProcess(seed, self.startup)


class Hyperband(Strategy):
    """Trials are compared at rungs, and only the best of a rung go on (Li et al. 2018), without waiting for the others (Li et al. 2020).

    A trial that stays goes on from where it is; nothing is trained twice. `brackets: 1` is plain asynchronous successive halving.
    """

    sampler: Annotated[Strategy, OneOf(STRATEGIES)] = Field(default_factory=TPE, description="How settings are chosen: random, tpe or gp.")
    reduction: int = Field(default=3, ge=2, description="One of so many trials of a rung goes on; the next rung lies so many times higher.")
    min_steps: int | None = Field(
        default=None, ge=1, description="Optimizer steps to the lowest rung; default: a 27th of the whole training, or one evaluation."
    )
    brackets: int | None = Field(
        default=None, ge=1, description="So many ladders, each beginning a rung higher than the one before; default: as many as fit."
    )

    @model_validator(mode="after")
    def _samples(self) -> Hyperband:
        if isinstance(self.sampler, Hyperband | Grid):
            raise ValueError("sampler: must be random, tpe or gp")
        return self

    def make_sampler(self, seed: int) -> Any:
        return self.sampler.make_sampler(seed)

    def rungs(self, steps: int, every: int | None) -> Rungs | None:
        lowest = self.min_steps or max(every or 1, round(steps / 27), 1)
        return Rungs.of(lowest, steps, self.reduction, self.brackets)


# -- as Optuna asks ----------------------------------------------------------------------------------------------------------


def seed_of(seed: int, number: int, key: str = "") -> int:
    """A seed of 32 bits for one trial, or for one key of it."""
    return int(np.random.SeedSequence([seed, number, zlib.crc32(key.encode())]).generate_state(1)[0])


class Seeded:
    """An Optuna sampler whose `make` is called for every trial. It answers Optuna's calls without deriving from its base class, because
    importing Optuna takes 0.2 s and only a search needs it.

    Args:
        make: seed -> a sampler.
        joint: trial number -> the distributions that are sampled together.
    """

    def __init__(self, make: Callable[[int], Any], seed: int, joint: Callable[[int], Mapping[str, Any]]):
        self.make, self.seed, self.joint = make, seed, joint

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {name: distribution for name, distribution in self.joint(trial.number).items() if not distribution.single()}

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        return self.make(seed_of(self.seed, trial.number)).sample_relative(study, trial, search_space) if search_space else {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.make(seed_of(self.seed, trial.number, param_name)).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Any, trial: Any) -> None:
        pass

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        pass

    def reseed_rng(self) -> None:
        pass


class Listed(Seeded):
    """Takes settings from a list: (study, trial number) -> which row."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], place: Callable[[Any, int], int]):
        super().__init__(lambda seed: None, 0, lambda number: {})
        self.listed, self.place = rows, place

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.listed[self.place(study, trial.number)][param_name]
