"""Any optax schedule by name.

Evaluated for the whole phase at once on the host's CPU and kept as plain numbers: the optax function computes with jax, and a
step must not wait for that.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pydantic import Field, model_validator

from jaxtune.core.component import nearest
from jaxtune.training.schedules.base import Schedule

Option = bool | int | float | str | None


class OptaxSchedule(Schedule):
    """`{kind: optax, name: cosine_decay_schedule, options: {init_value: 1.0e-4, decay_steps: total}}`."""

    name: str = Field(description="A function of optax.schedules that returns a schedule.")
    options: dict[str, Option | list[Option] | dict[int | float, float]] = Field(
        default_factory=dict, description='Its arguments; the word "total" stands for the number of steps of the phase.'
    )

    @model_validator(mode="after")
    def _exists(self) -> Self:
        known = _known()
        if self.name not in known:
            raise ValueError(f'optax has no schedule "{self.name}"{nearest(self.name, known)} (known: {", ".join(sorted(known))})')
        parameters = inspect.signature(known[self.name]).parameters
        unknown = [f'"{o}"{nearest(o, list(parameters))}' for o in self.options if o not in parameters]
        missing = [n for n, p in parameters.items() if p.default is p.empty and n not in self.options]
        if unknown or missing:
            told = [f"{self.name} has no option {o}" for o in unknown] + [f"{self.name} needs the option {m}" for m in missing]
            raise ValueError(f"{'; '.join(told)} (options: {', '.join(parameters)})")
        return self

    def __hash__(self) -> int:
        return hash((self.name, json.dumps(self.options, sort_keys=True)))

    def inside(self, step: int, total: int) -> float:
        return float(_rates(self, total)[step])


@lru_cache(maxsize=64)
def _rates(schedule: OptaxSchedule, total: int) -> np.ndarray:
    options = {name: total if value == "total" else value for name, value in schedule.options.items()}
    with jax.default_device(_host()):
        function = _known()[schedule.name](**options)
        return np.asarray(jax.vmap(lambda step: jnp.asarray(function(step), jnp.float32))(jnp.arange(total)))


def _known() -> dict[str, Callable[..., Any]]:
    """Functions that take numbers and give a schedule; those that join or wrap other schedules cannot be written in YAML."""
    names = {n for n in dir(optax.schedules) if not n.startswith(("_", "inject", "join")) and n.islower()}
    return {name: value for name in names if inspect.isfunction(value := getattr(optax.schedules, name)) and name != "sgdr_schedule"}


def _host() -> Any:
    """The CPU, where this process may use it beside the accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
