"""Every optimizer of the table: stacked equals unstacked, traced equals static, one compilation, decay by path."""

from __future__ import annotations

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
from jaxtune.training.optimizers.any_optax import REFUSED, TOGETHER, AnyOptax, _known
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
        {"name": "galore", "options": {"rank": 2}},
        {"name": "adadelta", "weight_decay": 0.1},
        {"name": "prodigy"},
    ],
}
CASES = [(kind, options) for kind in OPTIMIZERS for options in VARIANTS.get(kind, [{}, {"weight_decay": 0.1, "clip_norm": None}])]
every = pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())) or "default")

SHAPES = {
    "embed.embedding": (11, 6),
    "layers.0-2.attn.kernel": (3, 6, 5),
    "layers.0-2.attn.bias": (3, 5),
    "layers.0-2.norm.scale": (3, 6),
    "layers.3-4.attn.kernel": (2, 6, 5),
    "convolution.kernel": (3, 3, 4, 6),
    "head.kernel": (6, 3),
    "head.bias": (3,),
}


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


def train(optimizer: Optimizer, params: dict[str, jax.Array], gradients: list[dict[str, jax.Array]]) -> tuple[dict[str, jax.Array], Any]:
    facts = groups(params)

    @jax.jit
    def step(params: Any, state: Any, gradient: Any, controls: Any) -> Any:
        updates, state = optimizer.transform(controls, facts).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.transform(optimizer.controls(0, 10), facts).init(params)
    for number, gradient in enumerate(gradients):
        params, state = step(params, state, gradient, optimizer.controls(number, 10))
    assert step._cache_size() == 1
    return params, state


def close(a: dict[str, Any], b: dict[str, Any], rtol: float = 2e-5, atol: float = 2e-6) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=rtol, atol=atol, err_msg=key)


@every
def test_stacked_and_unstacked_are_updated_alike(kind, options):
    optimizer = make(kind, **options)
    params = arrays(0, scale_layers=True)
    gradients = [arrays(seed, scale_layers=True) for seed in range(1, 6)]
    stacked, _ = train(optimizer, params, gradients)
    single, _ = train(optimizer, unstacked(params), [unstacked(g) for g in gradients])
    for key, value in stacked.items():
        assert not np.allclose(value, params[key], rtol=1e-6), f"{key} was not trained"
    close(unstacked(stacked), single)


@every
def test_traced_controls_equal_constants(kind, options):
    if kind == "radam":
        options = options | {"beta2": 0.99}  # its threshold at step 5 is decided by the last digit of 1 - beta2
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    constants = {name: float(value) for name, value in optimizer.controls(3, 10).items()}
    static = optimizer.transform(constants, facts)
    traced = jax.jit(lambda c, g, s, p: optimizer.transform(c, facts).update(g, s, p))
    a = b = params
    state = other = static.init(params)
    for seed in range(1, 4):
        updates, state = jax.jit(static.update)(arrays(seed), state, a)
        a = optax.apply_updates(a, updates)
        updates, other = traced(optimizer.controls(3, 10), arrays(seed), other, b)
        b = optax.apply_updates(b, updates)
    close(b, a, rtol=1e-4, atol=1e-5)


@every
def test_changing_every_control_compiles_nothing(kind, options):
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    step = jax.jit(lambda c, g, s, p: optimizer.transform(c, facts).update(g, s, p))
    controls = optimizer.controls(0, 10)
    state = optimizer.transform(controls, facts).init(params)
    assert {"rate", "weight_decay"} <= controls.keys()
    for factor in (1.0, 0.9, 0.5):
        changed = {name: np.float32(value * factor) for name, value in controls.items()}
        updates, state = step(changed, arrays(1), state, params)
        assert all(np.isfinite(u).all() for u in updates.values())
    assert step._cache_size() == 1


@every
def test_every_control_is_used(kind, options):
    """A control that changed nothing would be a dead option; so would a setting that is not a control and changes nothing."""
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    controls = optimizer.controls(3, 10)
    dead = []
    for name in controls:
        jaxpr = jax.make_jaxpr(
            lambda value, g, s, p, name=name: optimizer.transform(controls | {name: value}, facts).update(g, s, p)
        )(controls[name], arrays(1), optimizer.transform(controls, facts).init(params), params).jaxpr
        if not any(jaxpr.invars[0] in equation.invars for equation in jaxpr.eqns):
            dead.append(name)
    assert dead == (["weight_decay"] if optimizer.decay == "none" else [])


@every
def test_state_structure_does_not_depend_on_controls(kind, options):
    optimizer, params = make(kind, **options), arrays(0)
    facts = groups(params)
    zero = {name: np.float32(0) for name in optimizer.controls(0, 10)}
    with np.errstate(all="ignore"):
        described = jax.eval_shape(lambda p: optimizer.transform(zero, facts).init(p), params)
        first = optimizer.transform(zero, facts).init(params)
    made = optimizer.transform(optimizer.controls(5, 10), facts).init(params)
    assert jax.tree.structure(described) == jax.tree.structure(made) == jax.tree.structure(first)
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
    after, _ = train(make(kind, **options | {"weight_decay": 0.5}), params, nothing)
    for key in params:
        if key.endswith(("vector",)):
            assert (np.asarray(after[key]) < 0.999).all(), key
        else:
            np.testing.assert_array_equal(after[key], 1.0, err_msg=key)


@pytest.mark.parametrize("kind", [k for k in OPTIMIZERS if k not in ("adam", "fromage", "lamb", "lars", "novograd", "optax")])
def test_decoupled_decay_takes_rate_times_decay(kind):
    params = {"head.vector": jnp.full((7,), 2.0)}
    optimizer = ADAPTER.validate_python({"kind": kind, "schedule": {"kind": "constant", "rate": 0.1}, "weight_decay": 0.5})
    after, _ = train(optimizer, params, [{"head.vector": jnp.zeros((7,))}] * 2)
    np.testing.assert_allclose(after["head.vector"], 2.0 * (1 - 0.1 * 0.5) ** 2, rtol=1e-6)


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
    plain, _ = train(make("sgd", momentum=None, clip_norm=None), params, [jax.tree.map(lambda g: g / optax.global_norm(gradient), gradient)])
    close(clipped, plain)
    moved = optax.global_norm(jax.tree.map(jnp.subtract, clipped, params))
    assert float(moved) == pytest.approx(make("sgd").schedule.at(0, 10), rel=1e-4)


def test_each_array_counts_its_own_steps():
    """An array that starts later gets adam's first step (rate x sign), not one that is three times too large."""
    optimizer = ADAPTER.validate_python({"kind": "adamw", "schedule": {"kind": "constant", "rate": 0.01}, "weight_decay": 0.0, "clip_norm": None})
    old, late = {"a.kernel": jnp.ones((3, 3))}, {"b.kernel": jnp.ones((3, 3))}
    _, state = train(optimizer, old, [{"a.kernel": jnp.ones((3, 3))}] * 9)
    both = old | late
    transform = optimizer.transform(optimizer.controls(0, 10), groups(both))
    joined = transform.init(both) | state
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, both), joined, both)
    np.testing.assert_allclose(updates["b.kernel"], -0.01, rtol=1e-4)


def test_layers_of_a_sharded_stack_are_updated_alike():
    params, gradient = arrays(0), arrays(1)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    place = {
        key: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data") if key.endswith("attn.kernel") else jax.sharding.PartitionSpec())
        for key in params
    }
    for kind in ("lamb", "muon"):
        one, _ = train(make(kind), params, [gradient])
        many, _ = train(make(kind), jax.device_put(params, place), [jax.device_put(gradient, place)])
        close(many, one)


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    optimizer = ADAPTER.validate_python({"kind": "muon", "schedule": {"kind": "constant", "rate": 1.0}, "weight_decay": 0.0, "match_adam": None})
    params = arrays(0)
    after, _ = train(optimizer, params, [arrays(1)])
    for key, rows in {"layers.0-2.attn.kernel": 3, "convolution.kernel": None}.items():
        update = np.asarray(after[key] - params[key])
        for matrix in update if rows else [update.reshape(36, 6)]:
            assert 0.5 < np.linalg.svd(matrix)[1].min() and np.linalg.svd(matrix)[1].max() < 1.5
    for key in ("head.kernel", "embed.embedding", "layers.0-2.attn.bias"):
        np.testing.assert_allclose(np.abs(after[key] - params[key]), 1.0, rtol=1e-3)  # adam's first step is the rate
    with pytest.raises(ConfigError, match="picks some layers"):
        Muon(schedule=SCHEDULE, orthogonal=("layers.{0-1}.*",)).is_orthogonal("layers.0-2.attn.kernel")
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
    params, gradients = arrays(0, scale_layers=True), [arrays(seed, scale_layers=True) for seed in (1, 2, 3)]
    stacked, _ = train(optimizer, params, gradients)
    single, _ = train(optimizer, unstacked(params), [unstacked(g) for g in gradients])
    close(unstacked(stacked), single)


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
