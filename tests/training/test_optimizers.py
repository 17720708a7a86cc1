"""Every optimizer of the table: stacked equals unstacked, traced equals static, one compilation, decay by path."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.layers.stack import is_stacked, names
from jaxtune.training.optimizers import OPTIMIZERS
from jaxtune.training.optimizers.any_optax import REFUSED, TOGETHER, _known
from jaxtune.training.optimizers.base import Groups, Optimizer
from jaxtune.training.optimizers.muon import Muon

ADAPTER = TypeAdapter(Annotated[Optimizer, OneOf(OPTIMIZERS)])
SCHEDULE = {"kind": "linear", "peak": 0.01, "warmup": 2}

# settings besides the defaults, chosen so that every branch with a setting of its own is on
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adam": [{}],
    "sgd": [{}, {"momentum": None}, {"nesterov": True}],
    "rmsprop": [{}, {"centered": True, "momentum": 0.9, "nesterov": True}],
    "lars": [{"weight_decay": 0.1}, {"nesterov": True}],
    "fromage": [{}],
    "novograd": [{"weight_decay": 0.1}],
    "adafactor": [{"least_axis": 4}, {"least_axis": 4, "momentum": 0.9, "clip_update": None}, {"factored": False, "relative": False}],
    "muon": [{}, {"match_adam": None, "nesterov": False, "adam_rate": 0.5}],
    "optax": [
        {"name": "adamax", "options": {"b1": 0.8}},
        {"name": "sm3"},
        {"name": "adadelta", "weight_decay": 0.1},
        {"name": "dowg"},
    ],
}
CASES = [(kind, options) for kind in OPTIMIZERS for options in VARIANTS.get(kind, [{}, {"weight_decay": 0.1, "clip_norm": None}])]
every = pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())) or "default"
)

SHAPES = {
    "layers.0-1.attn.kernel": (2, 6, 5),
    "layers.0-1.norm.scale": (2, 6),
    "convolution.kernel": (2, 2, 4, 6),
    "head.kernel": (6, 3),
    "head.bias": (3,),
}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiling is most of the time here


def make(kind: str, **options: Any) -> Optimizer:
    return ADAPTER.validate_python({"kind": kind, "schedule": SCHEDULE, **options})


def arrays(seed: int, scale_layers: bool = False) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    out = {}
    for key, shape in SHAPES.items():
        values = random.normal(size=shape).astype(np.float32)
        if scale_layers and is_stacked(key):  # layers whose norms differ by a lot
            values *= 10.0 ** np.arange(-1, shape[0] - 1, dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
        out[key] = jnp.asarray(values)
    return out


def unstacked(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: value[i] if is_stacked(key) else value for key, value in flat.items() for i, name in enumerate(names(key))}


def groups(flat: dict[str, Any]) -> Groups:
    decayed = {key for key in flat if not key.endswith((".bias", ".scale"))}
    return Groups(frozenset(decayed), frozenset(key for key in flat if is_stacked(key)))


def train(optimizer: Optimizer, params: dict[str, jax.Array], gradients: list[dict[str, jax.Array]], fade: float = 1.0) -> tuple[dict, Any]:
    """Some steps by one compiled program; every control is multiplied by `fade` from step to step."""
    facts = groups(params)

    @partial(jax.jit, compiler_options=QUICK)
    def step(params: Any, state: Any, gradient: Any, controls: Any) -> Any:
        updates, state = optimizer.transform(controls, facts).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = init(optimizer, params)
    for number, gradient in enumerate(gradients):
        controls = {name: np.float32(value * fade**number) for name, value in optimizer.controls(number, 10).items()}
        params, state = step(params, state, gradient, controls)
    assert step._cache_size() == 1
    return params, state


def init(optimizer: Optimizer, params: dict[str, jax.Array]) -> Any:
    return jax.jit(optimizer.transform(optimizer.controls(0, 10), groups(params)).init)(params)


def close(a: dict[str, Any], b: dict[str, Any], rtol: float = 2e-5, atol: float = 2e-6) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=rtol, atol=atol, err_msg=key)


@every
def test_stacked_and_unstacked_are_updated_alike_by_one_program_whatever_the_controls(kind, options):
    optimizer = make(kind, **options)
    params = arrays(0, scale_layers=True)
    gradients = [arrays(seed, scale_layers=True) for seed in range(1, 5)]
    stacked, _ = train(optimizer, params, gradients, fade=0.98)
    single, _ = train(optimizer, unstacked(params), [unstacked(g) for g in gradients], fade=0.98)
    for key, value in stacked.items():
        assert np.isfinite(value).all() and not np.allclose(value, params[key], rtol=1e-6), f"{key} was not trained"
    close(unstacked(stacked), single)


@every
def test_traced_controls_equal_constants(kind, options):
    if kind == "radam":
        options = options | {"beta2": 0.99}  # its threshold at step 5 is decided by the last digit of 1 - beta2
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    constants = {name: float(value) for name, value in optimizer.controls(3, 10).items()}
    static = jax.jit(optimizer.transform(constants, facts).update, compiler_options=QUICK)
    traced = jax.jit(lambda g, s, p, c: optimizer.transform(c, facts).update(g, s, p), compiler_options=QUICK)
    state = other = init(optimizer, params)
    for seed in range(1, 3):
        expected, state = static(arrays(seed), state, params)
        updates, other = traced(arrays(seed), other, params, optimizer.controls(3, 10))
    close(updates, expected, rtol=1e-4, atol=1e-6)


@every
def test_every_control_is_used(kind, options):
    """A control that changed nothing would be a dead option; so would a setting that is not a control and changes nothing."""
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    controls = optimizer.controls(3, 10)
    assert {"rate", "weight_decay"} <= controls.keys() | ({"weight_decay"} if optimizer.decay == "none" else set())
    dead = []
    for name in controls:
        jaxpr = jax.make_jaxpr(lambda value, g, s, p, name=name: optimizer.transform(controls | {name: value}, facts).update(g, s, p))(
            controls[name], params, init(optimizer, params), params
        ).jaxpr
        if not any(jaxpr.invars[0] in equation.invars for equation in jaxpr.eqns):
            dead.append(name)
    assert dead == []


@every
def test_state_structure_does_not_depend_on_controls(kind, options):
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    zero = {name: np.float32(0) for name in optimizer.controls(0, 10)}
    first = jax.jit(optimizer.transform(zero, facts).init)(params)
    made = init(optimizer, params)
    assert jax.tree.structure(made) == jax.tree.structure(first)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(made), strict=True):
        np.testing.assert_array_equal(a, b)
    if kind != "optax" or optimizer.name not in TOGETHER:
        assert made.keys() == params.keys()
        for key in facts.stacked:
            assert all(leaf.shape[0] == SHAPES[key][0] for leaf in jax.tree.leaves(made[key]))


DECAYING = [(kind, options) for kind, options in CASES if kind not in ("adam", "fromage")]


@pytest.mark.parametrize(("kind", "options"), DECAYING, ids=str)
def test_decay_goes_by_path_and_not_by_shape(kind, options):
    params = {
        "layers.0-1.q.bias": jnp.ones((2, 4, 4)),  # a matrix that is called bias
        "layers.0-1.gate.vector": jnp.ones((2, 5)),  # a vector that is not
        "norm.scale": jnp.ones((3, 3)),
        "head.vector": jnp.ones((7,)),
    }
    nothing = [jax.tree.map(lambda p: jnp.zeros_like(p), params)] * 3
    with_decay, without = (train(make(kind, **options | {"weight_decay": decay}), params, nothing)[0] for decay in (0.5, 0.0))
    for key in params:
        if key.endswith("vector"):
            assert (np.asarray(with_decay[key]) < without[key]).all(), key
        else:
            np.testing.assert_array_equal(with_decay[key], without[key], err_msg=key)


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k not in ("adam", "fromage", "lamb", "lars", "novograd", "optax")])
def test_decoupled_decay_takes_rate_times_decay(kind):
    params = {"head.vector": jnp.asarray(np.full(7, 2.0, np.float32))}
    optimizer = ADAPTER.validate_python({"kind": kind, "schedule": {"kind": "constant", "rate": 0.1}, "weight_decay": 0.5})
    after, _ = train(optimizer, params, [{"head.vector": jnp.zeros((7,))}] * 2)
    np.testing.assert_allclose(
        after["head.vector"], 2.0 * (1 - 0.1 * 0.5) ** 2, rtol=1e-6 if kind != "yogi" else 1e-4
    )  # yogi: first moment 1e-6


def test_adamw_is_optax_adamw():
    params = arrays(0)
    optimizer = make("adamw", weight_decay=0.1, clip_norm=2.0)
    gradients = [arrays(seed) for seed in range(1, 6)]
    ours, _ = train(optimizer, params, gradients)
    mask = {key: key in groups(params).decayed for key in params}
    state, theirs = None, params
    for number, gradient in enumerate(gradients):
        rate = optimizer.schedule.at(number, 10)
        reference = optax.chain(optax.clip_by_global_norm(2.0), optax.adamw(rate, weight_decay=0.1, mask=mask))
        state = reference.init(params) if state is None else state
        updates, state = reference.update(gradient, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    close(ours, theirs)


def test_clipping_is_over_everything():
    params = arrays(0)
    gradient = jax.tree.map(lambda g: 100 * g, arrays(1))
    clipped, _ = train(make("sgd", momentum=None, clip_norm=1.0), params, [gradient])
    plain, _ = train(make("sgd", momentum=None, clip_norm=None), params, [jax.tree.map(lambda g: g / optax.tree.norm(gradient), gradient)])
    close(clipped, plain)
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, clipped, params))
    assert float(moved) == pytest.approx(make("sgd").schedule.at(0, 10), rel=1e-4)


def test_each_array_counts_its_own_steps():
    """An array that starts later gets adam's first step (rate x sign), not one that is three times too large."""
    optimizer = ADAPTER.validate_python(
        {"kind": "adamw", "schedule": {"kind": "constant", "rate": 0.01}, "weight_decay": 0.0, "clip_norm": None}
    )
    old, late = {"a.kernel": jnp.ones((3, 3))}, {"b.kernel": jnp.ones((3, 3))}
    _, state = train(optimizer, old, [{"a.kernel": jnp.ones((3, 3))}] * 9)
    both = old | late
    transform = optimizer.transform(optimizer.controls(0, 10), groups(both))
    updates, _ = jax.jit(transform.update)(jax.tree.map(jnp.ones_like, both), init(optimizer, both) | state, both)
    np.testing.assert_allclose(updates["b.kernel"], -0.01, rtol=1e-4)


def test_layers_of_a_sharded_stack_are_updated_alike():
    params, gradient = arrays(0), arrays(1)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    place = {
        key: jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(None, "data") if key.endswith("attn.kernel") else jax.sharding.PartitionSpec()
        )
        for key in params
    }
    for kind in ("lamb", "muon"):
        one, _ = train(make(kind), params, [gradient])
        many, _ = train(make(kind), jax.device_put(params, place), [jax.device_put(gradient, place)])
        close(many, one)


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    optimizer = ADAPTER.validate_python(
        {"kind": "muon", "schedule": {"kind": "constant", "rate": 1.0}, "weight_decay": 0.0, "match_adam": None}
    )
    params = arrays(0)
    after, _ = train(optimizer, params, [arrays(1)])
    for key, rows in {"layers.0-1.attn.kernel": 2, "convolution.kernel": None}.items():
        update = np.asarray(after[key] - params[key])
        for matrix in update if rows else [update.reshape(16, 6)]:
            values = np.linalg.svd(matrix)[1]
            assert values.min() > 0.5 and values.max() < 1.5
    for key in ("head.kernel", "layers.0-1.norm.scale"):
        np.testing.assert_allclose(np.abs(after[key] - params[key]), 1.0, rtol=1e-3)  # adam's first step is the rate
    with pytest.raises(ConfigError, match="picks some layers"):
        Muon(schedule=SCHEDULE, orthogonal=("layers.0.*",)).is_orthogonal("layers.0-1.attn.kernel")
    with pytest.raises(ConfigError, match="is a vector of 3"):
        train(make("muon", orthogonal=["head.*"]), params, [arrays(1)])


@every
def test_dump_and_load_give_an_equal_optimizer(kind, options):
    optimizer = make(kind, **options)
    assert ADAPTER.validate_python(ADAPTER.dump_python(optimizer)) == optimizer
    assert hash(ADAPTER.validate_python(ADAPTER.dump_python(optimizer))) == hash(optimizer)
    assert all(type(value) is np.float32 for value in optimizer.controls(0, 10).values())


@pytest.mark.parametrize("name", sorted(_known()))
def test_every_optimizer_of_optax_is_within_reach(name):
    optimizer = make("optax", name=name, options={"rank": 2} if name == "galore" else {})
    params = arrays(0)

    def both(params: Any, controls: Any) -> Any:
        transform = optimizer.transform(controls, groups(params))
        state = transform.init(params)
        return state, transform.update(params, state, params)

    before, (updates, after) = jax.eval_shape(both, params, optimizer.controls(0, 10))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert shapes(updates) == shapes(params)
    assert shapes(before) == shapes(after)


def test_optax_decays_by_path_alone():
    """The constructor's own weight decay (adamaxw: 1e-4, on everything) is off."""
    params = {"a.kernel": jnp.ones((3,)), "a.bias": jnp.ones((3,))}
    nothing = [jax.tree.map(jnp.zeros_like, params)]
    for name in ("adamaxw", "adamw", "lion", "madgrad", "adafactor", "muon"):
        after, _ = train(make("optax", name=name), params, nothing)
        close(after, params, rtol=0, atol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_its_reason(name):
    with pytest.raises(ValidationError) as error:
        make("optax", name=name)
    assert REFUSED[name] in str(error.value)


def test_wrong_settings_are_refused():
    refused = [
        ({"kind": "adam", "weight_decay": 0.1}, "kind: adamw"),
        ({"kind": "adam", "no_decay": ["*.bias"]}, "no effect"),
        ({"kind": "fromage", "weight_decay": 0.1}, "no effect"),
        ({"kind": "sgd", "momentum": None, "nesterov": True}, "nesterov without momentum"),
        ({"kind": "rmsprop", "nesterov": True}, "nesterov without momentum"),
        ({"kind": "adamw", "beta1": 1.0}, "less than 1"),
        ({"kind": "adamw", "weight_decay": float("inf")}, "finite"),
        ({"kind": "adamw", "layer_decay": 0.0}, "greater than 0"),
        ({"kind": "optax", "name": "adamx"}, 'did you mean "adam'),
        ({"kind": "optax", "name": "scale_by_adam"}, "optax has no optimizer"),
        ({"kind": "optax", "name": "adamax", "options": {"beta": 0.9}}, 'no option "beta"'),
        ({"kind": "optax", "name": "adamaxw", "options": {"weight_decay": 0.1}}, "comes from schedule"),
        ({"kind": "optax", "name": "adamaxw", "options": {"learning_rate": 0.1}}, "comes from schedule"),
    ]
    for given, words in refused:
        with pytest.raises(ValidationError) as error:
            ADAPTER.validate_python({"schedule": SCHEDULE, **given})
        assert words in str(error.value), given
