"""One compilation per shape whatever the scalars are, FLOPs that know loops, and memory judged before the first step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from jaxtune.core.errors import ConfigError
from jaxtune.layers.stack import Stack, StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.family import DropoutRates
from jaxtune.parallel.mesh import Mesh
from jaxtune.training.compile import Memory, check_fits, device_memory, flops, memory

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def counted() -> Iterator[list[str]]:
    """What jax itself compiles meanwhile, one entry a program."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == COMPILED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def scaled(controls: Any, factor: float) -> Any:
    return jax.tree.map(lambda x: np.asarray(x * np.float32(factor), np.float32), controls)


def test_one_compilation_whatever_the_scalars_are() -> None:
    stage = tiny.small_stage(
        module=tiny.tower(),
        optimizer=tiny.adamw(weight_decay=0.1, layer_decay=0.9, head_rate=2.0),
        rates=DropoutRates(0.1, 0.1, 0.1),
        average=0.9,
    )
    placement = stage.step.placement
    batches = [placement.put_batch(tiny.points(seed=s)) for s in range(6)]
    scalars = [placement.put(scaled(stage.controls(n, 0.5**n), 0.97**n)) for n in range(6)]
    for name in ("rate", "weight_decay", "beta1", "beta2", "epsilon", "clip_norm"):
        assert len({float(s["optimizer"][name]) for s in scalars}) == 6, f"{name} does not change"
    for name in ("hidden", "attention", "head"):
        assert len({float(s["dropout"][name]) for s in scalars}) == 6
    assert len({float(s["average"]) for s in scalars}) == len({float(s["scales"]["head.kernel"]) for s in scalars}) == 6
    losses = []
    with counted() as compiled:
        for batch, scalar in zip(batches, scalars, strict=True):
            stage.state, report = stage.step(stage.state, batch, scalar)
            losses.append(jax.device_get(report["loss"]).total)
    assert stage.step.compilations == len(compiled) == 1
    assert len(set(map(float, losses))) == 6 and stage.state.step == 6


def test_one_compilation_per_shape() -> None:
    stage = tiny.small_stage()
    placement = stage.step.placement
    placed = [placement.put_batch(tiny.points(rows)) for rows in (8, 4, 8, 4)]
    scalars = placement.put(stage.controls(0, 1.0))
    with counted() as compiled:
        for number, batch in enumerate(placed):
            assert stage.step.is_known(batch) == (number >= 2)
            stage.state, _ = stage.step(stage.state, batch, scalars)
    assert stage.step.compilations == len(compiled) == 2 and stage.step.compile_seconds > 0


def test_the_second_step_of_a_mesh_compiles_nothing() -> None:
    """Output shardings are pinned: without that the state comes back placed otherwise."""
    placement = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])

    def axes(key: str, shape: tuple[int, ...]) -> tuple[str | None, ...]:
        return (None, "embed", "mlp")[-len(shape) :] if key.endswith("kernel") else (None,) * len(shape)

    stage = tiny.small_stage(module=tiny.tower(), placement=placement, axes=axes)
    placed = {key: value.sharding for key, value in stage.state.trainable.items()}
    assert not placed["layers.0-4.dense.kernel"].is_fully_replicated
    batch, scalars = placement.put_batch(tiny.points()), placement.put(stage.controls(0, 1.0))
    with counted() as compiled:
        for _ in range(3):
            stage.state, _ = stage.step(stage.state, batch, scalars)
    assert stage.step.compilations == len(compiled) == 1
    assert placed == {key: value.sharding for key, value in stage.state.trainable.items()}


def test_compiling_ahead_is_the_same_program() -> None:
    """From shapes alone, as `check` and `plan` do it; the first step then compiles nothing."""
    stage = tiny.small_stage()
    placement = stage.step.placement
    batch = placement.put_batch(tiny.points())
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.rows()) for name, x in batch.items()}
    scalars = placement.put(stage.controls(0, 1.0))
    program = stage.step.prepare(stage.state, shapes, scalars)
    with counted() as compiled:
        stage.state, _ = stage.step(stage.state, batch, scalars)
    assert not compiled and stage.step.prepare(stage.state, batch, scalars) is program


def test_the_step_is_given_its_memory_back() -> None:
    stage = tiny.small_stage(average=0.9)
    before = stage.state
    scalars = stage.step.placement.put(stage.controls(0, 1.0))
    batch = stage.step.placement.put_batch(tiny.points())
    planned = memory(stage.step.prepare(stage.state, batch, scalars))
    stage.state, _ = stage.step(stage.state, batch, scalars)
    given = [leaf for leaf in jax.tree.leaves(before) if leaf.dtype != before.key.dtype]
    assert all(leaf.is_deleted() for leaf in given)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(stage.state) if leaf.dtype != before.key.dtype)
    assert planned.aliased >= size, "every array of the state is overwritten in place"
    assert planned.arguments >= planned.aliased and planned.peak < planned.arguments + planned.outputs + planned.temporaries


# -- memory against the device ----------------------------------------------------------------------------------------------

NEEDED = Memory(arguments=6 * 2**30, outputs=5 * 2**30, temporaries=4 * 2**30, aliased=4 * 2**30)


def test_peak_counts_what_is_given_back_once() -> None:
    assert NEEDED.peak == 11 * 2**30


def test_too_much_is_told_with_parts_and_remedies() -> None:
    with pytest.raises(ConfigError) as caught:
        check_fits(NEEDED, 8 * 2**30, 32, 512)
    text = str(caught.value)
    rows = {line.strip().rsplit(maxsplit=2)[0]: float(line.split()[-2]) for line in text.splitlines() if line.endswith("GiB")}
    assert rows == {"state and batch": 6.0, "results": 1.0, "activations and other temporaries": 4.0, "peak": 11.0, "the device has": 8.0}
    assert [line.strip()[:2] for line in text.splitlines() if re.match(r"\s+\d\. ", line)] == ["1.", "2.", "3."]
    for remedy in ("accumulation: 2 (the 32 rows", "model.remat: block", "data.batch_size below 32, or data.max_tokens below 512"):
        assert remedy in text


def test_enough_or_unknown_is_no_error() -> None:
    check_fits(NEEDED, 11 * 2**30, 32, 512)
    check_fits(NEEDED, None, 32, None)
    with pytest.raises(ConfigError) as caught:
        check_fits(NEEDED, 2**30, 32, None)
    assert "max_tokens" not in str(caught.value)


def test_the_host_says_what_it_has() -> None:
    found = device_memory(jax.devices()[0])
    assert found is not None and found > 2**30


# -- FLOPs ------------------------------------------------------------------------------------------------------------------


def test_products_and_convolutions_by_hand() -> None:
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert flops(lambda a, b: jnp.einsum("XIJ,XJK->XIK", a, b), a, b) == 2 * 3 * 4 * 5 * 6


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_by_hand(stride: int, groups: int) -> None:
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 16))

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    forward = 2 * (2 * (8 // stride) ** 2 * 16) * (3 * 3 * 4 // groups)
    assert flops(convolve, x, w) == forward
    for argument in (0, 1):
        backward = jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w))), argument)
        assert flops(backward, x, w) == 2 * forward, "each gradient costs what the forward pass costs"


def test_loops_count_by_length_and_dead_code_not_at_all() -> None:
    w = jnp.ones((7, 4, 4))

    def loop(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0], x @ jnp.ones((4, 9))

    x = jnp.ones((5, 4))
    assert flops(loop, x) == 7 * 2 * 5 * 4 * 4 + 2 * 5 * 4 * 9
    assert flops(lambda x: loop(x)[0], x) == 7 * 2 * 5 * 4 * 4
    assert flops(jax.jit(lambda x: loop(x)[0]), x) == 7 * 2 * 5 * 4 * 4
    nested = flops(lambda x: jax.lax.scan(lambda x, _: (loop(x)[0], None), x, None, length=3)[0], x)
    assert nested == 3 * 7 * 2 * 5 * 4 * 4


class Wide(nnx.Module):
    """Mostly matrix products, so that XLA's count, which includes everything else, comes near."""

    def __init__(self, options: StackOptions, *, rngs: nnx.Rngs):
        self.body = nnx.Linear(4, 256, rngs=rngs)
        self.layers = Stack(lambda rngs: WideBlock(rngs), 4, options=options, rngs=rngs)
        self.head = nnx.Linear(256, tiny.CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, noise: Any = None) -> jax.Array:
        return self.head(self.layers(self.body(x), noise=noise))


class WideBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(256, 256, rngs=rngs)

    def __call__(self, x: jax.Array, *, noise: Any) -> jax.Array:
        return jnp.maximum(self.dense(x), 0.0)


def test_our_count_against_xla() -> None:
    """XLA counts the body of a loop once; ours of the scanned step equals XLA's of the unrolled one."""
    rows = 1024
    batch = tiny.points(rows)

    def counts(options: StackOptions) -> tuple[int, float]:
        stage = tiny.small_stage(module=Wide(options, rngs=nnx.Rngs(0)), optimizer=tiny.sgd(momentum=None, clip_norm=None))
        placement = stage.step.placement
        scalars = placement.put(stage.controls(0, 1.0))
        program = stage.step.prepare(stage.state, placement.put_batch(batch), scalars)
        analysis = program.cost_analysis()
        assert analysis is not None
        return flops(stage.step.function, stage.state, batch, scalars), analysis["flops"]

    (ours, once), (same, unrolled) = counts(StackOptions(scan=True)), counts(StackOptions(scan=False))
    body, layers, head = 2 * rows * 4 * 256, 4 * 2 * rows * 256 * 256, 2 * rows * 256 * 3
    assert ours == same == 2 * body + 3 * layers + 3 * head, "forward, and twice that backward, but for the gradient of the data"
    assert abs(unrolled / ours - 1) < 0.03
    assert once < 0.5 * ours


def test_flops_of_a_blueprint_need_no_numbers() -> None:
    blueprint = Blueprint.of(lambda: tiny.tower())
    batch = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    assert flops(lambda params, x: blueprint.build(params)(x), blueprint.params, batch) == 2 * 2 * (4 * 8 + 5 * 64 + 8 * 3)  # type: ignore[operator]
