"""One phase made ready: what trains is split off, the optimizer's state made, the step built. Families and own modules alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxtune.layers.norm import BatchNorm
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import DropoutRates
from jaxtune.parallel.placement import Placement
from jaxtune.training.compile import CompiledStep
from jaxtune.training.optimizers.base import Groups, Optimizer
from jaxtune.training.parameters import Selection, choose, groups, rate_scales
from jaxtune.training.state import TrainState, carry_over, create, opt_shardings, recut_params
from jaxtune.training.step import Augment, Objective, make_step

Transformation = optax.GradientTransformation


@dataclass(frozen=True)
class Depth:
    """How a parameter's depth is read from its per-layer name, for layer-wise rates."""

    layer_of: Callable[[str], int]
    layers: int


FLAT = Depth(lambda name: 0, 0)


Start = Callable[[Mapping[str, jax.Array], Mapping[str, Any]], optax.OptState]  # (trainable arrays, optimizer controls) -> first state


@dataclass(frozen=True)
class Programs:
    """What a phase has traced and compiled. A phase that differs in traced scalars alone uses it again and compiles nothing."""

    blueprint: Blueprint
    selection: Selection
    step: CompiledStep
    start: Start


@dataclass
class Stage:
    """A phase that can run. `state` is replaced as it trains."""

    blueprint: Blueprint
    selection: Selection
    state: TrainState
    step: CompiledStep
    controls: Callable[[int, float], dict[str, Any]]
    transform: Callable[[Mapping[str, Any]], Transformation]
    start: Start

    @property
    def programs(self) -> Programs:
        """For another phase of the same structure."""
        return Programs(self.blueprint, self.selection, self.step, self.start)

    @property
    def module(self) -> nnx.Module:
        """The module with the present parameters (the averaged ones where an average is kept)."""
        return self.blueprint.build(self.state.evaluated, self.state.variables)


def build_stage(
    make: Callable[[tuple[int, ...]], Callable[[], nnx.Module]],
    params: Mapping[str, jax.Array],
    variables: Mapping[str, jax.Array],
    shardings: Callable[[Blueprint], Mapping[str, Any]],
    objective: Objective,
    optimizer: Optimizer | Transformation,
    placement: Placement,
    *,
    patterns: Sequence[str],
    steps: int,
    seed: int,
    accumulation: int = 1,
    average: float | None = None,
    rates: DropoutRates | None = None,
    adapter_dropout: float = 0.0,
    augment: Augment | None = None,
    depth: Depth = FLAT,
    previous: TrainState | None = None,
    programs: Programs | None = None,
) -> Stage:
    """The stage of one phase.

    Args:
        make: cuts -> a function that builds the module with its stacks cut there.
        params: every parameter, under any cutting.
        optimizer: a component, or any optax transformation (its settings are then constants of the program).
        steps: length of the phase, for the schedule.
        rates: dropout rates; None switches dropout off statically.
        adapter_dropout: rate at the inputs of adapters; 0 switches it off statically.
        previous: the state that the phase before ended with; moments of what goes on training are carried over.
        programs: of a phase with the same module, objective, patterns, accumulation and augmentation, with dropout and average switched
            on or off alike, and with an optimizer of equal `structure`.

    Raises:
        ConfigError: a pattern of `patterns` matches nothing.
    """
    if programs is None:
        selection = choose(Blueprint.of(make(())).params, patterns)
        blueprint = Blueprint.of(lambda: settled(make(selection.cuts)(), selection))
    else:
        selection, blueprint = programs.selection, programs.blueprint
    placed = shardings(blueprint)
    params = recut_params(params, blueprint.params, placed)
    variables = recut_params(variables, blueprint.others, placed)
    trainable = [key for key in blueprint.params if selection.trains(key)]
    transform, host = recipe(optimizer, groups(trainable, optimizer) if isinstance(optimizer, Optimizer) else None, steps)
    own_scales = rate_scales(trainable, optimizer, depth.layer_of, depth.layers) if isinstance(optimizer, Optimizer) else None
    dropout = {name: np.float32(value) for name, value in {**vars(rates or DropoutRates()), "adapter": adapter_dropout}.items()}

    def controls(step: int, rate_scale: float) -> dict[str, Any]:
        return {
            "optimizer": host(step, rate_scale),
            # a plain transformation has its rate inside, so what a stop rule does to the rate is done to its updates
            "scales": dict.fromkeys(trainable, np.float32(rate_scale)) if own_scales is None else own_scales,
            "dropout": dropout,
            "average": np.float32(average or 0.0),
        }

    arrays = {key: params[key] for key in trainable}
    start = starter(transform, arrays, host(0, 1.0), placement) if programs is None else programs.start
    state = create(params, variables, selection.trains, start(arrays, host(0, 1.0)), placement, seed=seed, average=average is not None)
    if previous is not None:
        state = carry_over(previous, state)
    if programs is None:
        function = make_step(
            blueprint, objective, transform,
            accumulation=accumulation, dropout=rates is not None, adapter_dropout=adapter_dropout > 0, augment=augment,
        )  # fmt: skip
        step = CompiledStep.of(function, state, placement)
    else:
        step = programs.step
    return Stage(blueprint, selection, state, step, controls, transform, start)


def starter(
    transform: Callable[[Mapping[str, Any]], Transformation], arrays: Mapping[str, jax.Array], controls: Any, placement: Placement
) -> Start:
    """Makes the optimizer's state before step 0, by one program for all controls; the moments live where their parameters live."""
    shardings = opt_shardings(transform(controls), arrays, placement)
    return jax.jit(lambda arrays, controls: transform(controls).init(arrays), out_shardings=shardings)


def settled(module: nnx.Module, selection: Selection) -> nnx.Module:
    """The module with the statistics of norms that do not train held still: a frozen layer computes the same in training and evaluation."""
    for path, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.frozen = ".".join(map(str, (*path, "scale"))) not in selection.names
    return module


def recipe(
    optimizer: Optimizer | Transformation, parts: Groups | None, steps: int
) -> tuple[Callable[[Mapping[str, Any]], Transformation], Callable[[int, float], dict[str, Any]]]:
    """(controls -> transformation, (step, rate scale) -> controls) of a component or of a plain optax transformation."""
    if not isinstance(optimizer, Optimizer):
        plain = optimizer
        return lambda controls: plain, lambda step, rate_scale: {}
    assert parts is not None

    def host(step: int, rate_scale: float) -> dict[str, Any]:
        values = optimizer.controls(step, steps)
        return {**values, "rate": np.float32(values["rate"] * rate_scale)}

    return lambda controls: optimizer.transform(controls, parts), host


def restore(stage: Stage, state: TrainState) -> None:
    """Puts a restored state in, on the stage's own shardings."""
    stage.state = replace(state)
