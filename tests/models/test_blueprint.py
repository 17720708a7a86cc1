"""A blueprint takes any nnx module apart and puts it together again, inside a trace and outside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.models.blueprint import Blueprint, Flat


class Own(nnx.Module):
    """Somebody's own module: a parameter in a list, a batch statistic, and a setting."""

    def __init__(self, rngs: nnx.Rngs):
        self.parts = nnx.List([nnx.Linear(3, 2, rngs=rngs), nnx.Linear(2, 1, use_bias=False, rngs=rngs)])
        self.seen = nnx.BatchStat(jnp.zeros((3,)))
        self.scale = 2.0

    def __call__(self, x: jax.Array) -> jax.Array:
        self.seen[...] += x.sum(0)
        for part in self.parts:
            x = part(x)
        return self.scale * x


def make() -> Own:
    return Own(nnx.Rngs(params=jax.random.key(0)))


def test_of_computes_nothing_and_knows_everything() -> None:
    blueprint = Blueprint.of(make)
    shapes = {key: value.shape for key, value in blueprint.params.items()}
    assert shapes == {"parts.0.bias": (2,), "parts.0.kernel": (3, 2), "parts.1.kernel": (2, 1)}
    assert {key: value.shape for key, value in blueprint.others.items()} == {"seen": (3,)}


def test_split_and_build_round_trip() -> None:
    module, x = make(), jnp.arange(6.0).reshape(2, 3)
    blueprint, flat = Blueprint.split(module)
    assert flat.keys() == blueprint.variables.keys() == Blueprint.of(make).variables.keys()
    np.testing.assert_allclose(blueprint.build(flat)(x), module(x), rtol=1e-6)
    np.testing.assert_array_equal(flat["seen"], np.zeros(3))


def test_changes_come_out_of_a_trace_and_the_given_values_stay() -> None:
    blueprint, flat = Blueprint.split(make())
    params, others = ({key: flat[key] for key in part} for part in (blueprint.params, blueprint.others))

    @jax.jit
    def step(params: Flat, others: Flat) -> tuple[Flat, Flat]:
        def loss(params: Flat) -> tuple[jax.Array, Flat]:
            module = blueprint.build(params, others)
            return module(jnp.ones((4, 3))).sum(), blueprint.changed(module)

        gradients, changed = jax.grad(loss, has_aux=True)(params)
        return gradients, changed

    gradients, changed = step(params, others)
    assert gradients.keys() == params.keys() and changed.keys() == others.keys()
    np.testing.assert_array_equal(changed["seen"], np.full(3, 4.0))
    np.testing.assert_array_equal(others["seen"], np.zeros(3))


def test_initialise_makes_the_asked_for_values_alone() -> None:
    blueprint, flat = Blueprint.split(make())
    shardings = dict.fromkeys(blueprint.variables, jax.sharding.SingleDeviceSharding(jax.devices()[1]))
    fresh = blueprint.initialise(make, frozenset({"parts.1.kernel"}), shardings)
    assert fresh.keys() == {"parts.1.kernel"} and fresh["parts.1.kernel"].devices() == {jax.devices()[1]}
    np.testing.assert_allclose(fresh["parts.1.kernel"], flat["parts.1.kernel"], rtol=1e-6)
    assert blueprint.initialise(make, frozenset(), shardings) == {}


def test_a_missing_value_is_named() -> None:
    blueprint, flat = Blueprint.split(make())
    with pytest.raises(AssertionError, match=r"no value for \['parts.1.kernel'\]"):
        blueprint.build({key: value for key, value in flat.items() if key != "parts.1.kernel"})
