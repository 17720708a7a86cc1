"""The state: what is in it, how it goes into the next phase, and how it lies in a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxtune.layers import stack
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.stage import Stage
from jaxtune.training.state import TrainState, abstract, carry_over, from_arrays, shardings_of, stored_key, to_arrays

LAYERS = tiny.Tower.LAYERS


def phase(train: list[str], previous: Stage | None = None, **settings: Any) -> Stage:
    """A phase of the tower, whose parameters come from the phase before."""
    stage = tiny.small_stage(
        train,
        module=tiny.tower(),
        cut=lambda cuts: tiny.tower(StackOptions(cuts=cuts, scan=True)),
        previous=None if previous is None else previous.state,
        **settings,
    )
    if previous is None:
        return stage
    params = stack.recut(tiny.host(previous.state.params), list(stage.state.params), lambda x, a, b: x[a:b], np.concatenate)
    placed = {key: jax.device_put(value, stage.state.params[key].sharding) for key, value in params.items()}
    stage.state = replace(
        stage.state, trainable={k: placed[k] for k in stage.state.trainable}, frozen={k: placed[k] for k in stage.state.frozen}
    )
    return stage


def moments(state: TrainState, kind: str) -> dict[str, np.ndarray]:
    """Per-layer name -> the first ("mu") or second ("nu") moment, or the number of updates ("count"), of that layer."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        key = stored_key(path, state.trainable)
        if key is None or kind not in jax.tree_util.keystr(path):
            continue
        for row, name in enumerate(stack.names(key)):
            found[name] = np.asarray(leaf)[row] if stack.is_stacked(key) else np.asarray(leaf)
    return found


def test_frozen_parameters_have_no_optimizer_state() -> None:
    stage = phase(["head.*", "layers.{3-4}.*"])
    trained = {"head.kernel", "head.bias", *(f"layers.{i}.dense.{part}" for i in (3, 4) for part in ("kernel", "bias"))}
    for kind in ("mu", "nu", "count"):
        assert moments(stage.state, kind).keys() == trained
    sizes = {key: value.size for key, value in stage.state.trainable.items()}
    numbers = sum(leaf.size for leaf in jax.tree.leaves(stage.state.opt_state))
    counts = 2 + 2 * 2  # one each for head.kernel and head.bias, one for each layer's kernel and bias
    assert numbers == 2 * sum(sizes.values()) + counts
    assert not stage.state.trainable.keys() & stage.state.frozen.keys()
    assert stage.state.params.keys() == stage.blueprint.params.keys()


def test_moments_lie_where_their_parameters_lie() -> None:
    placement = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    stage = tiny.stage_of(["layers.*", "head.*"], placement=placement, average=0.9)
    state, split = stage.state, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        key = stored_key(path, state.trainable)
        assert key is not None
        if leaf.shape == state.trainable[key].shape:
            assert leaf.sharding == state.trainable[key].sharding
            split += not leaf.sharding.is_fully_replicated
        else:
            assert leaf.sharding.is_fully_replicated
    assert split > 10, "a mesh of 2 x 2 x 2 splits the moments of kernels"
    for key, value in state.average.items():
        assert value.sharding.is_equivalent_to(state.trainable[key].sharding, value.ndim)
    pinned = shardings_of(state)
    assert jax.tree.structure(pinned) == jax.tree.structure(state)


@pytest.fixture(scope="module")
def upper() -> Stage:
    """Three steps of the upper layers; its state is read only."""
    stage = phase(["head.*", "layers.{3-4}.*"])
    tiny.steps(stage, [tiny.points(seed=s) for s in range(3)])
    return stage


def test_moments_are_carried_over_by_layer(upper: Stage) -> None:
    new = phase(["*"], upper)
    assert new.blueprint.params.keys() != upper.blueprint.params.keys(), "another cutting"
    for kind in ("mu", "nu", "count"):
        old, now = moments(upper.state, kind), moments(new.state, kind)
        assert len(now) == 4 + 2 * LAYERS
        for name, value in now.items():
            np.testing.assert_array_equal(value, old.get(name, np.zeros_like(value)), err_msg=f"{kind} {name}")
            assert name not in old or np.any(value != 0)
    assert new.state.step == 3


def test_a_layer_that_stops_training_loses_its_moments_and_the_rest_keeps_them(upper: Stage) -> None:
    new = phase(["layers.{2-3}.*"], upper)
    old, now = moments(upper.state, "mu"), moments(new.state, "mu")
    assert now.keys() == {f"layers.{i}.dense.{part}" for i in (2, 3) for part in ("kernel", "bias")}
    for name, value in now.items():
        np.testing.assert_array_equal(value, old[name] if ".3." in name else np.zeros_like(value))


def test_there_and_back_is_exact(upper: Stage) -> None:
    """Recutting the optimizer's state: whole -> cut in three -> whole."""
    everything = phase(["*"])
    tiny.steps(everything, [tiny.points(seed=s) for s in range(2)])
    cut = carry_over(everything.state, tiny.small_stage(module=tiny.tower(StackOptions(cuts=(1, 3), scan=True))).state)
    assert "layers.1-2.dense.kernel" in cut.trainable
    back = carry_over(cut, phase(["*"]).state)
    tiny.trees_equal(back.opt_state, everything.state.opt_state)
    for kind in ("mu", "nu", "count"):
        assert moments(cut, kind).keys() == moments(everything.state, kind).keys()
        tiny.equal(moments(cut, kind), moments(everything.state, kind))


def test_training_in_two_phases_is_training_in_one() -> None:
    """A phase change that changes nothing about what trains leaves no trace."""
    once = phase(["*"])
    tiny.steps(once, [tiny.points(seed=s) for s in range(4)])
    first = phase(["*"])
    tiny.steps(first, [tiny.points(seed=s) for s in range(2)])
    second = phase(["*"], first)
    tiny.steps(second, [tiny.points(seed=s) for s in range(2, 4)], first=2)
    tiny.trees_equal(tiny.host(second.state), tiny.host(once.state))


def test_what_else_crosses_a_phase_change(upper: Stage) -> None:
    upper_state = replace(upper.state, skipped=jnp.int32(2), skipped_in_a_row=jnp.int32(2))
    new = carry_over(upper_state, phase(["*"], seed=5).state)
    assert (new.step, new.skipped, new.skipped_in_a_row) == (3, 2, 0)
    np.testing.assert_array_equal(tiny.numbers(new.key), tiny.numbers(upper.state.key))


def test_another_optimizer_starts_afresh(upper: Stage) -> None:
    new = phase(["*"], upper, optimizer=tiny.sgd())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(new.state.opt_state))


def test_a_plain_optax_optimizer_is_carried_over_as_well() -> None:
    first = phase(["layers.{3-4}.*", "head.*"], optimizer=optax.adam(1e-2))
    tiny.steps(first, [tiny.points()] * 2)
    new = phase(["*"], first, optimizer=optax.adam(1e-2))
    old, now = moments(first.state, "mu"), moments(new.state, "mu")
    for name, value in now.items():
        np.testing.assert_array_equal(value, old.get(name, np.zeros_like(value)))
    assert new.state.opt_state[0].count == 2


def test_a_checkpoint_holds_what_may_differ_from_the_base(upper: Stage) -> None:
    arrays = to_arrays(upper.state, upper.selection.names)
    assert arrays["params"].keys() == upper.state.trainable.keys()
    assert arrays.keys() == {"step", "variables", "opt_state", "average", "key", "skipped", "skipped_in_a_row", "params"}
    all_of_it = to_arrays(upper.state, frozenset(name for key in upper.state.params for name in stack.names(key)))
    assert all_of_it["params"].keys() == upper.state.params.keys()


def test_arrays_and_back(upper: Stage) -> None:
    fresh = phase(["head.*", "layers.{3-4}.*"], average=0.5)
    tiny.steps(fresh, [tiny.points()])
    other = phase(["head.*", "layers.{3-4}.*"], average=0.5, seed=9)
    arrays = to_arrays(fresh.state, fresh.selection.names)
    tiny.trees_equal(tiny.host(from_arrays(other.state, arrays)), tiny.host(fresh.state))
    shapes = abstract(arrays)
    for wanted, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(arrays), strict=True):
        assert (wanted.shape, wanted.dtype, wanted.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


def test_a_frozen_part_of_a_checkpoint_is_put_back() -> None:
    """In a second phase a parameter that the first one trained may be frozen: it still comes from the checkpoint."""
    stage = phase(["head.*"])
    touched = frozenset({"head.kernel", "head.bias", "body.kernel"})
    arrays = to_arrays(stage.state, touched)
    arrays["params"] = {**arrays["params"], "body.kernel": arrays["params"]["body.kernel"] + 1}
    restored = from_arrays(stage.state, arrays)
    np.testing.assert_array_equal(restored.frozen["body.kernel"], np.asarray(stage.state.frozen["body.kernel"]) + 1)
    assert "body.kernel" not in restored.trainable


def test_no_two_arrays_of_a_state_share_memory() -> None:
    """They are given away at every step; one buffer given twice is an error of the runtime."""
    stage = tiny.small_stage(average=0.5)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(stage.state) if leaf.dtype != stage.state.key.dtype]
    assert len(set(pointers)) == len(pointers)
    assert Blueprint.split(tiny.small())[1].keys() == stage.state.params.keys()
