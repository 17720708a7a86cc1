"""Everything that changes during a phase, in one pytree, and how it is carried into the next phase.

Trainable and frozen parameters are split here, before differentiation: a frozen one has no gradient and no optimizer state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxtune.layers import stack
from jaxtune.models.blueprint import Flat
from jaxtune.parallel.placement import Placement


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All flat dicts are keyed by stored path."""

    step: jax.Array  # i32[], optimizer steps since the run began
    trainable: Flat
    frozen: Flat
    variables: Flat  # batch statistics and the like
    opt_state: optax.OptState
    average: Flat  # exponential moving average of the trainable parameters, or {}
    key: jax.Array  # typed PRNG key of the run; each step folds its number in
    skipped: jax.Array  # i32[], steps whose loss or gradients were not finite
    skipped_in_a_row: jax.Array  # i32[]

    @property
    def params(self) -> Flat:
        return {**self.trainable, **self.frozen}

    @property
    def evaluated(self) -> Flat:
        """The parameters to evaluate and export: the averaged ones where an average is kept."""
        return {**self.trainable, **self.frozen, **self.average}


def create(
    params: Mapping[str, jax.Array],
    variables: Mapping[str, jax.Array],
    trains: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    placement: Placement,
    *,
    seed: int,
    average: bool,
) -> TrainState:
    """The state before step 0; the optimizer's moments live where their parameters live."""
    trainable = {key: value for key, value in params.items() if trains(key)}
    return TrainState(
        step=placement.put(jnp.zeros((), jnp.int32)),
        trainable=trainable,
        frozen={key: value for key, value in params.items() if not trains(key)},
        variables=dict(variables),
        opt_state=jax.jit(optimizer.init, out_shardings=opt_shardings(optimizer, trainable, placement))(trainable),
        average=jax.tree.map(jnp.copy, trainable) if average else {},
        key=placement.put(jax.random.key(seed)),
        skipped=placement.put(jnp.zeros((), jnp.int32)),
        skipped_in_a_row=placement.put(jnp.zeros((), jnp.int32)),
    )


def opt_shardings(optimizer: optax.GradientTransformation, trainable: Flat, placement: Placement) -> Any:
    """A moment of the shape of its parameter is sharded like it; everything else is replicated."""

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        key = stored_key(path, trainable)
        if key is not None and trainable[key].shape == leaf.shape:
            return trainable[key].sharding
        return placement.replicated

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, trainable))


def stored_key(path: Any, known: Mapping[str, Any]) -> str | None:
    """The stored parameter path inside a pytree path, if any."""
    return next((p.key for p in path if isinstance(p, jax.tree_util.DictKey) and p.key in known), None)


def carry_over(old: TrainState, new: TrainState) -> TrainState:
    """`new` (freshly created for the next phase) with the optimizer state of whatever goes on training.

    Moments are matched by their place in the state and by layer, so they survive another cutting of the stacks; moments of newly trained
    parameters stay zero. An optimizer of another structure starts afresh.
    """
    pieces: dict[str, list[tuple[str, jax.Array]]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(old.opt_state):
        key = stored_key(path, old.trainable)
        pieces.setdefault(place_in_state(path, key), []).append((key or "", leaf))

    def merge(path: Any, leaf: jax.Array) -> jax.Array:
        key = stored_key(path, new.trainable)
        for old_key, value in pieces.get(place_in_state(path, key), []):
            if key is None or not stack.is_stacked(key) or leaf.ndim == 0:
                return jax.device_put(value, leaf.sharding) if value.shape == leaf.shape else leaf
            (first, last), (a, b) = bounds(key), bounds(old_key)
            low, high = max(first, a), min(last, b)
            if low <= high and value.shape[1:] == leaf.shape[1:] and value.shape[:1] == (b - a + 1,):
                leaf = jax.device_put(leaf.at[low - first : high + 1 - first].set(value[low - a : high + 1 - a]), leaf.sharding)
        return leaf

    opt_state = jax.tree_util.tree_map_with_path(merge, new.opt_state)
    return replace(new, step=old.step, key=old.key, skipped=old.skipped, opt_state=opt_state)


def bounds(key: str) -> tuple[int, int]:
    found = stack.segment_bounds(key)
    assert found is not None
    return found


def place_in_state(path: Any, key: str | None) -> str:
    """A pytree path with the segment left out of the stored key, equal for the same moment in two cuttings."""
    parts = [stack.whole(key) if key is not None and getattr(p, "key", None) == key else jax.tree_util.keystr((p,)) for p in path]
    return "/".join(parts)


def recut_params(flat: Mapping[str, jax.Array], wanted: Mapping[str, Any], placed: Mapping[str, Any]) -> Flat:
    """The same parameters under the cutting of `wanted`'s stored paths, on the shardings of `placed`."""
    moved = stack.recut(flat, list(wanted), lambda x, a, b: x[a:b], lambda parts: jnp.concatenate(parts, axis=0))
    return {key: jax.device_put(value, placed[key]) for key, value in moved.items()}


def overlay(values: Mapping[str, jax.Array], source: Mapping[str, jax.Array], wanted: Callable[[str], bool]) -> Flat:
    """`values` with the layers of `source` whose per-layer name is wanted, whatever the two cuttings; dtypes and places stay."""
    place = {name: (key, row) for key in source for row, name in enumerate(stack.names(key)) if wanted(name)}

    def layer(name: str) -> jax.Array:
        key, row = place[name]
        return source[key][row] if stack.is_stacked(key) else source[key]

    out = {}
    for key, value in values.items():
        for row, name in enumerate(stack.names(key)):
            if name in place:
                found = layer(name).astype(value.dtype)
                value = value.at[row].set(found) if stack.is_stacked(key) else found
        out[key] = jax.device_put(value, values[key].sharding)
    return out


def shardings_of(state: TrainState) -> TrainState:
    """A pytree of the shape of the state with each array's sharding: pinned as the step's output, or every second step recompiles."""
    return jax.tree.map(lambda x: x.sharding, state)


def to_arrays(state: TrainState, touched: frozenset[str]) -> dict[str, Any]:
    """The state as a checkpoint holds it: without the parameters that no phase has changed, because they are in the base.

    Args:
        touched: per-layer names of parameters that differ from the base, or may.
    """
    arrays: dict[str, Any] = {
        field.name: getattr(state, field.name) for field in fields(state) if field.name not in ("trainable", "frozen")
    }
    return {**arrays, "params": {key: value for key, value in state.params.items() if not touched.isdisjoint(stack.names(key))}}


def from_arrays(state: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    """`state` with a checkpoint's numbers; what the checkpoint leaves to the base stays."""
    params = arrays["params"]
    return replace(
        state,
        trainable={key: params.get(key, value) for key, value in state.trainable.items()},
        frozen={key: params.get(key, value) for key, value in state.frozen.items()},
        **{name: value for name, value in arrays.items() if name != "params"},
    )


def abstract(arrays: Any) -> Any:
    """Shapes, dtypes and shardings of arrays: what a restore asks for."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)
