"""Optuna's samplers, seeded anew for every trial and key from the search's seed and the trial's number.

So what a trial is given depends on the finished trials alone, not on how many random numbers were drawn before: a search that was killed
and goes on chooses what it would have chosen. The classes answer Optuna's calls without deriving from its base class, because importing
Optuna takes 0.2 s and only a search needs it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def seed_of(seed: int, number: int, key: str = "") -> int:
    """A seed of 32 bits for one trial, or for one key of it."""
    return int(np.random.SeedSequence([seed, number, zlib.crc32(key.encode())]).generate_state(1)[0])


class Seeded:
    """A sampler whose `make` is called for every trial.

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
    """Takes settings from a list, by the trial's number."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]):
        super().__init__(lambda seed: None, 0, lambda number: {})
        self.rows = rows

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self.rows[trial.number][param_name]
