"""The hot step: one jitted function over plain pytrees.

Everything that changes is in `TrainState`; scalars that change from step to step travel as `controls`; all else is closed over. The
optimizer is built inside the trace from the controls, so no rate, decay or dropout rate is a constant of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtune.core.weighted import Weighted
from jaxtune.layers.dropout import Dropout, adapters_with
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.training.part_norms import part_norms
from jaxtune.training.state import TrainState

Batch = Mapping[str, jax.Array]
# (module, batch, noise) -> the batch's loss as a sum with its weight; noise is None when dropout is off
Objective = Callable[[nnx.Module, Batch, Dropout | None], Weighted]
# (batch, key) -> batch: what changes a training batch on the device
Augment = Callable[[Batch, jax.Array], Batch]


def make_step(
    blueprint: Blueprint,
    objective: Objective,
    optimizer: Callable[[Mapping[str, jax.Array]], optax.GradientTransformation],
    *,
    accumulation: int = 1,
    dropout: bool = True,
    adapter_dropout: bool = False,
    augment: Augment | None = None,
) -> Callable[[TrainState, Batch, Any], tuple[TrainState, dict[str, Any]]]:
    """The step as a pure function, to be jitted by `training/compile.py`.

    Args:
        optimizer: controls -> transformation; called inside the trace.
        accumulation: number of parts a batch is cut into; gradients are summed and divided once by the whole batch's weight, so the result
            is that of the whole batch also where parts weigh differently. Batch statistics alone see one part after the other.
        dropout: False switches it off statically.
        adapter_dropout: the same for the inputs of adapters, which costs nothing elsewhere.
    """

    def loss_of(trainable: Flat, frozen: Flat, variables: Flat, batch: Batch, key: jax.Array, rates: Mapping[str, jax.Array]) -> Any:
        module = blueprint.build(trainable, frozen, variables)
        noise = Dropout(key=key, **rates)
        with adapters_with(noise if adapter_dropout else None):
            loss = objective(module, batch, noise if dropout else None)
        return loss.total, (loss, blueprint.changed(module))

    def step(state: TrainState, batch: Batch, controls: Any) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(state.key, state.step)
        if augment is not None:
            batch = augment(batch, jax.random.fold_in(key, 0))
        gradient = jax.value_and_grad(loss_of, has_aux=True)

        def part(carry: Any, piece: Any) -> tuple[Any, None]:
            loss, gradients, variables = carry
            rows, part_key = piece
            (_, (more, variables)), add = gradient(state.trainable, state.frozen, variables, rows, part_key, controls["dropout"])
            return (loss + more, jax.tree.map(jnp.add, gradients, add), variables), None

        if accumulation == 1:
            (_, (loss, variables)), gradients = gradient(
                state.trainable, state.frozen, state.variables, batch, jax.random.fold_in(key, 1), controls["dropout"]
            )
        else:
            zero = (Weighted.zero(), jax.tree.map(jnp.zeros_like, state.trainable), state.variables)
            keys = jax.random.split(jax.random.fold_in(key, 1), accumulation)
            (loss, gradients, variables), _ = jax.lax.scan(part, zero, (jax.tree.map(strided, batch), keys))

        weight = jnp.maximum(loss.weight, jnp.finfo(jnp.float32).tiny)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        by_part = part_norms(gradients)
        norm = optax.tree.norm(by_part)
        found: Any = optimizer(controls["optimizer"]).update(gradients, state.opt_state, state.trainable)
        updates, opt_state = found
        trainable = {
            name: old + (updates[name] * spread(controls["scales"][name], old)).astype(old.dtype) for name, old in state.trainable.items()
        }
        average = {name: old + (1.0 - controls["average"]) * (trainable[name] - old) for name, old in state.average.items()}

        finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)  # noqa: E731
        bad = 1 - finite.astype(jnp.int32)
        new = replace(
            state,
            step=state.step + 1,
            trainable=keep(trainable, state.trainable),
            variables=keep(variables, state.variables),
            opt_state=keep(opt_state, state.opt_state),
            average=keep(average, state.average),
            skipped=state.skipped + bad,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
        )
        told = {"loss": loss, "gradient_norm": norm, "part_norms": by_part, "finite": finite, "skipped_in_a_row": new.skipped_in_a_row}
        return new, told

    def strided(x: jax.Array) -> jax.Array:
        """[B, ...] -> [accumulation, B / accumulation, ...], every part with rows from all over the batch (and from every device)."""
        return x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)

    return step


def spread(scale: jax.Array, update: jax.Array) -> jax.Array:
    """A scalar, or a vector [L] against a stacked [L, ...] update."""
    return scale.reshape(scale.shape + (1,) * (update.ndim - scale.ndim)).astype(update.dtype)
