"""Frozen means: the same numbers as masking with optax, bit-equal parameters, no optimizer state, and none of the work.

The masked step stands here as anybody would write it: gradients of everything, the norm of all of them logged, `set_to_zero` at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxtune.models.blueprint import Flat
from jaxtune.session import objective
from jaxtune.training.compile import Memory, flops, memory
from jaxtune.training.stage import Stage
from jaxtune.training.state import stored_key

ROWS, WIDTH = 32, 24
TRAIN = {"all": ["*"], "upper": ["layers.2.*", "pooler.*", "head.*"], "head": ["head.*"]}
# epsilon: the gradients of key biases are zero but for rounding, which Adam would otherwise blow up
RATE, DECAY, EPSILON = 1e-2, 0.1, 1e-3
BATCHES = [tiny.texts(ROWS, WIDTH, seed=seed) for seed in range(3)]


@functools.cache
def split(part: str) -> Stage:
    """A phase before its first step. Its step is compiled once; its state must not be given away."""
    return tiny.stage_of(TRAIN[part], optimizer=tiny.adamw(RATE, weight_decay=DECAY, epsilon=EPSILON, clip_norm=None))


def fresh(part: str) -> Stage:
    """The same phase with a state of its own, and the program that `split` has compiled."""
    new = tiny.stage_of(TRAIN[part], optimizer=tiny.adamw(RATE, weight_decay=DECAY, epsilon=EPSILON, clip_norm=None))
    new.step.programs = split(part).step.programs
    return new


def masked_optimizer(stage: Stage, part: str) -> optax.GradientTransformation:
    """The same AdamW by optax, with frozen parameters masked: by labels for one part, by masks for the other."""
    trains = {key: stage.selection.trains(key) for key in stage.blueprint.params}
    decays = {key: not key.endswith((".bias", ".scale")) for key in trains}
    if part == "head":
        adam = optax.adamw(RATE, eps=EPSILON, weight_decay=DECAY, mask={key: decays[key] for key in trains})
        frozen = {key: not value for key, value in trains.items()}
        return optax.chain(optax.masked(adam, trains), optax.masked(optax.set_to_zero(), frozen))
    adam = optax.adamw(RATE, eps=EPSILON, weight_decay=DECAY, mask=lambda tree: {key: decays[key] for key in tree})
    labels = {key: "train" if value else "freeze" for key, value in trains.items()}
    return optax.multi_transform({"train": adam, "freeze": optax.set_to_zero()}, labels)


def masked_step(stage: Stage, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    def step(params: Flat, opt_state: Any, batch: Any) -> Any:
        def total(params: Flat) -> Any:
            loss = objective(tiny.TASK, stage.blueprint.build(params), batch, None)
            return loss.total, loss

        (_, loss), gradients = jax.value_and_grad(total, has_aux=True)(params)
        gradients = jax.tree.map(lambda g: g / loss.weight, gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    return step


@functools.cache
def masked(part: str) -> tuple[dict[str, np.ndarray], int, Memory]:
    """Parameters after the batches, FLOPs of a step, memory of its program."""
    stage = split(part)
    optimizer = masked_optimizer(stage, part)
    params = {key: jax.numpy.array(value) for key, value in stage.state.params.items()}
    opt_state = optimizer.init(params)
    step = masked_step(stage, optimizer)
    counted = flops(step, params, opt_state, BATCHES[0])
    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, BATCHES[0]).compile()
    for batch in BATCHES:
        params, opt_state, _ = program(params, opt_state, batch)
    return tiny.host(params), counted, memory(program)


@functools.cache
def program(part: str) -> tuple[int, Memory]:
    """FLOPs and memory of the split step."""
    stage = split(part)
    placement = stage.step.placement
    arguments = (stage.state, placement.put_batch(BATCHES[0]), placement.put(stage.controls(0, 1.0)))
    return flops(stage.step.function, *arguments), memory(stage.step.prepare(*arguments))


@functools.cache
def trained(part: str) -> tuple[dict[str, np.ndarray], Stage]:
    program(part)
    stage = fresh(part)
    before = tiny.host(stage.state.params)
    tiny.steps(stage, BATCHES)
    assert stage.step.compilations == 1
    return before, stage


@pytest.mark.parametrize("part", ["upper", "head"])
def test_frozen_leaves_are_bit_equal_and_the_others_move(part: str) -> None:
    before, stage = trained(part)
    assert stage.state.frozen and not stage.state.frozen.keys() & stage.state.trainable.keys()
    tiny.equal(stage.state.frozen, {key: before[key] for key in stage.state.frozen})
    for key, value in stage.state.trainable.items():
        assert not np.array_equal(value, before[key]), key


@pytest.mark.parametrize("part", ["upper", "head"])
def test_frozen_leaves_are_absent_from_the_optimizer_state(part: str) -> None:
    _, stage = trained(part)
    leaves = jax.tree_util.tree_leaves_with_path(stage.state.opt_state)
    assert {stored_key(path, stage.state.params) for path, _ in leaves} == stage.state.trainable.keys()
    moments = sum(leaf.size for path, leaf in leaves if "count" not in jax.tree_util.keystr(path))
    assert moments == 2 * sum(value.size for value in stage.state.trainable.values())


@pytest.mark.parametrize("part", ["upper", "head"])
def test_splitting_equals_masking(part: str) -> None:
    before, stage = trained(part)
    expected, _, _ = masked(part)
    assert expected.keys() == stage.state.params.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(stage.state.params[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
        assert np.array_equal(value, before[key]) == (key in stage.state.frozen)


@pytest.mark.parametrize("part", ["upper", "head"])
def test_splitting_does_less_and_needs_less_than_masking(part: str) -> None:
    (ours, needed), (_, theirs, theirs_needed) = program(part), masked(part)
    everything, _ = program("all")
    assert theirs == everything, "masking saves no product"
    assert ours < {"upper": 0.62, "head": 0.36}[part] * theirs
    assert needed.temporaries < {"upper": 0.5, "head": 0.25}[part] * theirs_needed.temporaries
    assert needed.peak < theirs_needed.peak


def test_flops_are_what_arithmetic_says() -> None:
    """No backward pass through what is frozen, the whole of it through what trains."""
    width, mlp, layers = 32, 40, 3
    tokens = ROWS * WIDTH
    layer = 2 * tokens * (4 * width * width + 2 * width * mlp) + 2 * 2 * tokens * WIDTH * width
    pooler, head = 2 * ROWS * width * width, 2 * ROWS * width * tiny.CLASSES
    forward = layers * layer + pooler + head
    expected = {"all": 3 * forward, "upper": forward + 2 * (layer + pooler + head), "head": forward + head}
    for part, count in expected.items():
        assert abs(program(part)[0] / count - 1) < 0.03, f"{part}: {program(part)[0]} counted, {count} by hand"


def test_memory_falls_with_what_trains() -> None:
    needed = [program(part)[1] for part in ("all", "upper", "head")]
    temporaries = [m.temporaries for m in needed]
    assert temporaries[0] > 1.5 * temporaries[1] and temporaries[1] > 1.2 * temporaries[2]
    states = [sum(leaf.nbytes for leaf in jax.tree.leaves(split(part).state.opt_state)) for part in ("all", "upper", "head")]
    assert states[0] > 2 * states[1] > 10 * states[2]


def test_a_bias_alone_needs_no_product_of_its_kernel() -> None:
    """Freezing inside a layer: gradients pass through the kernel but are not taken of it."""
    stage = tiny.small_stage(["*.bias"], optimizer=tiny.sgd())
    batch = tiny.points(64)
    counted = flops(stage.step.function, stage.state, batch, stage.controls(0, 1.0))
    body, head = 2 * 64 * 4 * 8, 2 * 64 * 8 * tiny.CLASSES
    assert counted == body + 2 * head
