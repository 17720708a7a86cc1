"""Any optax optimizer by name, with the same schedule, decay by path and clipping as all others."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Self

import optax
from optax import contrib
from pydantic import Field, model_validator

from jaxtune.core.component import nearest
from jaxtune.training.optimizers.base import Controls, Groups, Number, Optimizer, Updated, flat

Option = bool | int | float | str | None

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("lbfgs", "polyak_sgd", "momo", "momo_adam", "sophia"), "it asks for the loss again inside the update"),
    **dict.fromkeys(
        ("schedule_free", "schedule_free_adamw", "schedule_free_sgd"), "the parameters to evaluate are not those that it trains"
    ),
    "dpsgd": "it needs the gradient of each example",
    "noisy_sgd": "its noise would not depend on the run's seed",
    "optimistic_adam": "optax has deprecated it; write optimistic_adam_v2",
}
"""Optimizers of optax that ask for more than gradients and parameters."""

TOGETHER = frozenset({"dog", "dowg", "prodigy", "dadapt_adamw"})
"""Optimizers with one statistic over all parameters; they get the whole tree, every other one gets array by array."""

DECAYS = ("weight_decay", "weight_decay_rate", "adam_weight_decay")


class AnyOptax(Optimizer):
    """`{kind: optax, name: adamax, options: {b1: 0.95}, schedule: ...}`, from optax or optax.contrib.

    Options that are floats are traced like the settings of the other kinds.
    """

    name: str = Field(description="A function of optax or optax.contrib that takes a learning_rate.")
    options: dict[str, Option | list[Option]] = Field(
        default_factory=dict,
        description="Its other arguments; not learning_rate (it is the schedule's) and not weight_decay (by path, as for all kinds).",
    )

    @model_validator(mode="after")
    def _exists(self) -> Self:
        known = _known()
        if self.name in REFUSED:
            raise ValueError(f'optax\'s "{self.name}" cannot be used here: {REFUSED[self.name]}')
        if self.name not in known:
            raise ValueError(f'optax has no optimizer "{self.name}"{nearest(self.name, known)} (known: {", ".join(sorted(known))})')
        parameters = inspect.signature(known[self.name]).parameters
        taken = ("learning_rate", "mask", "weight_decay_mask", *DECAYS)
        free = [name for name in parameters if name not in taken]
        problems = [f'"{o}" comes from schedule, weight_decay and no_decay' for o in self.options if o in taken]
        unknown = [o for o in self.options if o not in (*taken, *free)]
        problems += [f'{self.name} has no option "{o}"{nearest(o, free)} (options: {", ".join(free)})' for o in unknown]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def __hash__(self) -> int:
        return hash((self.name, self.schedule, json.dumps(self.model_dump(exclude={"schedule"}), sort_keys=True)))

    def settings(self) -> dict[str, float]:
        return super().settings() | {f"options.{name}": value for name, value in self.options.items() if isinstance(value, float)}

    def structure(self) -> dict[str, Any]:
        options = {name: "traced" if isinstance(value, float) else value for name, value in self.options.items()}
        return super().structure() | {"options": options}

    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        make = _known()[self.name]
        own_decay = {name: 0.0 for name in DECAYS if isinstance(_default(make, name), float)}
        options = {name: controls[f"options.{name}"] if isinstance(value, float) else value for name, value in self.options.items()}
        return make(learning_rate=controls["rate"], **own_decay, **options)

    def transform(self, controls: Controls, groups: Groups) -> optax.GradientTransformation:
        if self.name not in TOGETHER:
            return super().transform(controls, groups)
        whole = self.rule(controls, 0.0, "")

        def update(updates: optax.Updates, state: optax.OptState, params: Any = None) -> Updated:
            result, new = whole.update(self.clipped(updates, controls), state, params)
            return self.decayed(flat(result), flat(params), controls, groups), new

        return optax.GradientTransformation(whole.init, update)


def _known() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The functions of optax and optax.contrib that make an optimizer."""
    found = {}
    for module in (contrib, optax):
        for name in dir(module):
            value = getattr(module, name)
            usable = inspect.isfunction(value) and not name.startswith(("_", "scale_by")) and name not in REFUSED
            if usable and "learning_rate" in inspect.signature(value).parameters:
                found[name] = value
    return found


def _default(function: Callable[..., Any], name: str) -> Any:
    parameter = inspect.signature(function).parameters.get(name)
    return None if parameter is None else parameter.default
