"""What an optimizer is: a rule for one parameter array, built inside the trace from traced scalars.

The rule is an optax transformation of a single array, and a stacked array [L, ...] is L arrays under `jax.vmap`. So a norm or
a factorisation never reaches across layers, whatever the optimizer, and every array (every layer) counts its own steps: one
that starts to train in a later phase gets its own bias correction, where a count shared with the others would make adam's
first updates of it about three times too large.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import numpy as np
import optax
from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.training.schedules import SCHEDULES
from jaxtune.training.schedules.base import Schedule

Number = jax.Array | float
Controls = Mapping[str, Any]
Updated = tuple[optax.Updates, optax.OptState]

NO_DECAY = ("*.bias", "*.scale", "*.scale_*", "*.magnitude")

Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
WeightDecay = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="Each step takes rate x weight_decay x parameter away from the parameters that decay (all but no_decay), "
        "apart from the gradient.",
    ),
]


@dataclass(frozen=True)
class Groups:
    """What is known about the trainable arrays before tracing, by stored path."""

    decayed: frozenset[str]  # get weight decay
    stacked: frozenset[str]  # have a leading layer axis


class Optimizer(Component):
    """Every float setting is a control: traced, so a search or a live adjustment of it compiles nothing."""

    decay: ClassVar[Literal["decoupled", "inside", "none"]] = "decoupled"  # inside: `rule` takes care of it
    instead_of_decay: ClassVar[str] = "leave them out"  # the advice where decay is "none"
    fixed: ClassVar[frozenset[str]] = frozenset({"layer_decay", "head_rate"})  # float settings that are no controls of the rule

    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Field(description="The learning rate over the phase.")
    weight_decay: WeightDecay = 0.0
    no_decay: tuple[str, ...] = Field(
        default=NO_DECAY,
        description="Patterns of the parameters without weight decay: biases, norms and the vectors of adapters, by name, never by shape.",
    )
    clip_norm: Positive | None = Field(
        default=1.0, description="Gradients are scaled down together to this norm over all trainable parameters; null: no clipping."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Each layer learns at this share of the rate of the layer above it, down to the embeddings; null: all alike.",
    )
    head_rate: Positive = Field(default=1.0, description="The head learns at this multiple of the rate.")

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.decay == "none" and (self.weight_decay or self.no_decay != NO_DECAY):
            name = type(self).__name__
            raise ValueError(f"{name} has no weight decay, so weight_decay and no_decay would have no effect; {self.instead_of_decay}")
        return self

    @abstractmethod
    def rule(self, controls: Controls, weight_decay: Number, key: str) -> optax.GradientTransformation:
        """How the array at stored path `key` is updated, seen as one layer of it if it is stacked.

        Args:
            controls: `rate` and the float settings, traced scalars.
            weight_decay: 0 for an array that does not decay; only to be used where `decay` is "inside".
        """

    def controls(self, step: int, total: int) -> dict[str, np.float32]:
        """`rate` and every float setting, for step `step` (from 0) of the `total` of the phase."""
        return {"rate": np.float32(self.schedule.at(step, total))} | {name: np.float32(value) for name, value in self.settings().items()}

    def settings(self) -> dict[str, float]:
        """The float settings that are controls. One that is null is left out: what is switched off is off in the program."""
        left_out = self.fixed | ({"weight_decay"} if self.decay == "none" else set())
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in left_out}
        return {name: value for name, value in values.items() if isinstance(value, float)}

    def structure(self) -> dict[str, Any]:
        """All that its program depends on: the kind, and every setting that is no traced number. Equal structures share a program."""
        outside = {"schedule", *Optimizer.fixed, *self.settings()}
        return {"class": type(self)} | {name: getattr(self, name) for name in type(self).model_fields if name not in outside}

    def transform(self, controls: Controls, groups: Groups) -> optax.GradientTransformation:
        """The optimizer of all trainable arrays, a flat dict; its state is {stored path: state of that array's rule}.

        Called inside the trace. The state's structure depends on the settings that are no controls alone, so `init` may be called with
        any controls.
        """

        def rule(key: str) -> optax.GradientTransformation:
            decays = self.decay == "inside" and key in groups.decayed
            made = self.rule(controls, controls["weight_decay"] if decays else 0.0, key)
            return over_layers(made) if key in groups.stacked else made

        def init(params: optax.Params) -> optax.OptState:
            return {key: rule(key).init(value) for key, value in flat(params).items()}

        def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Updated:
            arrays = flat(params)
            gradients = flat(self.clipped(updates, controls))
            result, new = {}, {}
            for key, gradient in gradients.items():
                result[key], new[key] = rule(key).update(gradient, flat(state)[key], arrays[key])
            return self.decayed(result, arrays, controls, groups), new

        return optax.GradientTransformation(init, update)

    def clipped(self, gradients: optax.Updates, controls: Controls) -> optax.Updates:
        """Scaled to `clip_norm` over everything, if that is set."""
        if self.clip_norm is None:
            return gradients
        return optax.clip_by_global_norm(controls["clip_norm"]).update(gradients, optax.EmptyState())[0]

    def decayed(
        self, updates: Mapping[str, jax.Array], params: Mapping[str, jax.Array], controls: Controls, groups: Groups
    ) -> dict[str, jax.Array]:
        """With decoupled weight decay (Loshchilov and Hutter 2019) added to the arrays that decay."""
        if self.decay != "decoupled":
            return dict(updates)
        loss = controls["rate"] * controls["weight_decay"]
        return {key: update - loss * params[key] if key in groups.decayed else update for key, update in updates.items()}


def over_layers(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule of one layer, for each row of a stacked array."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Updated:
        return jax.vmap(rule.update)(updates, state, params)

    return optax.GradientTransformation(jax.vmap(rule.init), update)


def flat(tree: Any) -> dict[str, Any]:
    assert isinstance(tree, dict), f"optimizers work on flat dicts of arrays by stored path, found {type(tree).__name__}"
    return tree
