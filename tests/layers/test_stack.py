"""A stack is its blocks one after the other, however it is cut, unrolled or rematerialised; its stored names say which rows are which."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.linear import Linear
from jaxtune.layers.stack import Stack, StackOptions, cuts_for, is_stacked, names, recut, repeating, segment_bounds, whole
from jaxtune.models.blueprint import Blueprint, Flat

LAYERS, WIDTH = 5, 6
X, SHIFT = np.linspace(-1, 1, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH), np.full((2, WIDTH), 0.1, np.float32)


class Block(nnx.Module):
    """A residual product with dropout, and a counter that moves at every call."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = Linear(WIDTH, WIDTH, deviation=0.5, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array, shift: jax.Array, *, noise: Dropout | None) -> jax.Array:
        self.calls[...] += 1.0
        return x + dropout(jnp.tanh(self.dense(x)), noise, "out") + shift


def build(options: StackOptions) -> Stack:
    return Stack(Block, LAYERS, options=options, rngs=nnx.Rngs(params=jax.random.key(3)))


@functools.cache
def whole_values() -> Flat:
    return Blueprint.split(build(StackOptions()))[1]


def values_for(blueprint: Blueprint) -> Flat:
    return recut(whole_values(), list(blueprint.variables), lambda rows, first, last: rows[first:last], jnp.concatenate)


def noise(rate: float) -> Dropout:
    return Dropout(jax.random.key(7), *(jnp.float32(rate) for _ in range(3)))


def by_hand(values: Flat, x: jax.Array, shift: jax.Array, given: Dropout | None) -> jax.Array:
    """The definition: a Python loop over the rows."""
    for layer in range(LAYERS):
        y = jnp.tanh(x @ values["0-4.dense.kernel"][layer] + values["0-4.dense.bias"][layer][None])
        x = x + (y if given is None else given.fold(layer).on(y, "out")) + shift
    return x


WAYS = [
    StackOptions(),
    StackOptions(scan=True),
    StackOptions(scan=False),
    StackOptions(cuts=(2,)),
    StackOptions(cuts=(1, 4), scan=True),
    StackOptions(cuts=(3,), scan=True, remat="block"),
    StackOptions(remat="dots"),
]


@functools.cache
def expected(dropped: bool) -> tuple[jax.Array, Flat]:
    def loss(values: Flat) -> jax.Array:
        return jnp.sum(jnp.sin(by_hand(values, X, SHIFT, noise(0.4) if dropped else None)))

    return jax.jit(jax.value_and_grad(loss))({key: value for key, value in whole_values().items() if "calls" not in key})


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_every_way_equals_the_loop(options: StackOptions) -> None:
    blueprint = Blueprint.of(lambda: build(options))
    values = values_for(blueprint)

    @jax.jit
    def run(params: Flat) -> tuple[tuple[jax.Array, Flat], ...]:
        def loss(params: Flat, given: Dropout | None) -> jax.Array:
            return jnp.sum(jnp.sin(blueprint.build(values, params)(X, SHIFT, noise=given)))

        return tuple(jax.value_and_grad(loss)(params, given) for given in (None, noise(0.4)))

    for dropped, (value, gradients) in enumerate(run({key: values[key] for key in blueprint.params})):
        expected_value, expected_gradients = expected(bool(dropped))
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)
        joined = recut(gradients, list(expected_gradients), lambda rows, first, last: rows[first:last], jnp.concatenate)
        for key, gradient in expected_gradients.items():
            np.testing.assert_allclose(joined[key], gradient, rtol=1e-4, atol=1e-5, err_msg=key)


def test_cutting_changes_no_initial_value() -> None:
    whole_one, cut = whole_values(), Blueprint.split(build(StackOptions(cuts=(2, 3))))[1]
    assert set(cut) == {f"{s}.{part}" for s in ("0-1", "2-2", "3-4") for part in ("dense.kernel", "dense.bias", "calls")}
    np.testing.assert_array_equal(jnp.concatenate([cut[f"{s}.dense.kernel"] for s in ("0-1", "2-2", "3-4")]), whole_one["0-4.dense.kernel"])
    rows = np.asarray(whole_one["0-4.dense.kernel"])
    assert rows.shape == (LAYERS, WIDTH, WIDTH) and not np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize("remat", ["none", "block"])
def test_variables_of_the_blocks_move(remat: str) -> None:
    stack = build(StackOptions(cuts=(2,), scan=True, remat=remat))  # type: ignore[arg-type]
    stack(jnp.ones((1, WIDTH)), jnp.zeros((1, WIDTH)))
    stack(jnp.ones((1, WIDTH)), jnp.zeros((1, WIDTH)))
    values = Blueprint.split(stack)[1]
    np.testing.assert_array_equal(values["0-1.calls"], [2.0, 2.0])
    np.testing.assert_array_equal(values["2-4.calls"], [2.0, 2.0, 2.0])


def test_a_scan_compiles_one_body() -> None:
    """The point of scanning: the program does not grow with depth."""

    def products(options: StackOptions) -> int:
        blueprint = Blueprint.of(lambda: build(options))
        return jax.jit(lambda values: blueprint.build(values)(X, SHIFT)).lower(values_for(blueprint)).as_text().count("dot_general")

    assert products(StackOptions(scan=True)) == 1
    assert products(StackOptions(scan=True, cuts=(2,))) == 2
    assert products(StackOptions(scan=False)) == LAYERS


def test_auto_unrolls_shallow_stacks_on_cpu() -> None:
    assert StackOptions().unroll(12) and not StackOptions().unroll(13)
    assert StackOptions(scan=False).unroll(50) and not StackOptions(scan=True).unroll(1)


def test_rematerialising_keeps_less() -> None:
    x = jnp.ones((64, WIDTH))

    def stored(remat: str) -> int:
        blueprint = Blueprint.of(lambda: build(StackOptions(scan=True, remat=remat)))  # type: ignore[arg-type]
        values = values_for(blueprint)
        _, backward = jax.eval_shape(lambda values: jax.vjp(lambda values: blueprint.build(values)(x, x), values), values)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    rows = LAYERS * x.size
    assert rows < stored("block") < 1.5 * rows < 2 * rows < stored("none")


@pytest.mark.parametrize("scan", [True, False])
def test_what_rematerialising_does_not_keep_is_computed_again(scan: bool) -> None:
    """Also where the loop is unrolled, and XLA could find the same products twice and keep the first."""
    x = jnp.ones((64, WIDTH))

    def flops(remat: str) -> float:
        blueprint = Blueprint.of(lambda: build(StackOptions(scan=scan, remat=remat)))  # type: ignore[arg-type]
        gradient = jax.grad(lambda values: blueprint.build(values)(x, x).sum())
        return jax.jit(gradient).lower(values_for(blueprint)).compile().cost_analysis()["flops"]  # type: ignore[index]

    assert flops("block") > 1.1 * flops("none")


def test_names_of_rows() -> None:
    assert names("layers.2-4.attn.q.kernel") == tuple(f"layers.{i}.attn.q.kernel" for i in (2, 3, 4))
    assert names("layers.7-7.up.bias") == ("layers.7.up.bias",)
    assert names("head.out.kernel") == ("head.out.kernel",)
    assert is_stacked("layers.0-1.q") and not is_stacked("stages.0.1.q") and not is_stacked("head.x-1.q")
    assert segment_bounds("layers.10-12.q") == (10, 12) and segment_bounds("pooler.kernel") is None
    assert whole("layers.0-1.q") == whole("layers.2-9.q") != whole("layers.0-1.k")


def test_cuts_where_training_changes() -> None:
    keys = ("embeddings.token", "layers.0-5.q.kernel", "layers.0-5.q.bias")
    assert cuts_for(keys, lambda name: True) == ()
    assert cuts_for(keys, lambda name: name.startswith("head")) == ()
    assert cuts_for(keys, lambda name: name.startswith(("layers.4", "layers.5"))) == (4,)
    assert cuts_for(keys, lambda name: name == "layers.2.q.bias") == (2, 3)
    cut = ("layers.0-3.q.kernel", "layers.4-5.q.kernel", "layers.0-3.q.bias", "layers.4-5.q.bias")
    assert cuts_for(cut, lambda name: name.startswith("layers.1.")) == (1, 2), "whatever the cutting it is asked from"


def test_recut_slices_joins_and_leaves_out() -> None:
    rows = {"layers.0-2.q": [0, 1, 2], "layers.3-5.q": [3, 4, 5], "head.k": [9]}

    def to(*keys: str) -> dict[str, list[int]]:
        return recut(rows, keys, lambda value, first, last: value[first:last], lambda parts: [n for part in parts for n in part])

    assert to("layers.0-5.q", "head.k") == {"layers.0-5.q": [0, 1, 2, 3, 4, 5], "head.k": [9]}
    assert to("layers.0-0.q", "layers.1-4.q", "layers.5-5.q") == {"layers.0-0.q": [0], "layers.1-4.q": [1, 2, 3, 4], "layers.5-5.q": [5]}
    assert to("layers.3-5.q", "layers.6-7.q", "layers.4-6.q", "head.x") == {"layers.3-5.q": [3, 4, 5]}


@pytest.mark.parametrize(
    ("kinds", "groups"),
    [
        ("aaaaa", [(0, 1, 5)]),
        ("llllgllllgll", [(0, 5, 2), (10, 1, 2)]),
        ("ffffss", [(0, 1, 4), (4, 1, 2)]),
        ("slslsl", [(0, 2, 3)]),
        ("a", [(0, 1, 1)]),
        ("lgll", [(0, 4, 1)]),
    ],
)
def test_kinds_become_few_repeating_groups(kinds: str, groups: list[tuple[int, int, int]]) -> None:
    assert [(group.first, group.period, group.repeats) for group in repeating(tuple(kinds))] == groups


class Told(nnx.Module):
    """Multiplies by a parameter and adds what it is told."""

    def __init__(self, rngs: nnx.Rngs):
        self.scale = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x: dict[str, jax.Array], *, kind: float, layer: jax.Array, noise: Dropout | None) -> dict[str, jax.Array]:
        return {"x": x["x"] * self.scale[...] + kind, "layers": x["layers"] + layer}


@pytest.mark.parametrize(
    "options", [StackOptions(scan=True), StackOptions(scan=False), StackOptions(cuts=(2,), scan=True, remat="block")], ids=str
)
def test_blocks_are_told_their_kind_and_number(options: StackOptions) -> None:
    kinds = (1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 5.0)
    made = Stack(Told, 7, kinds=kinds, options=options, rngs=nnx.Rngs(params=jax.random.key(0)))
    found = made({"x": jnp.float32(1), "layers": jnp.int32(0)})
    values = Blueprint.split(made)[1]
    scales = jnp.concatenate([values[f"{first}-{last}.scale"] for first, last in made.bounds])
    expected = 1.0
    for scale, kind in zip(scales, kinds, strict=True):
        expected = expected * float(scale) + kind
    assert float(found["x"]) == pytest.approx(expected, rel=1e-5) and int(found["layers"]) == sum(range(7))
