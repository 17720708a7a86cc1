"""Tiny models ready to train, for several folders of tests: the recorded BERT checkpoint and small modules of our own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.core.weighted import Weighted
from jaxtune.layers.dropout import Dropout, dropout
from jaxtune.layers.stack import Stack, StackOptions
from jaxtune.losses.cross_entropy import CrossEntropy
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import Base, load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.mesh import Mesh
from jaxtune.parallel.placement import Placement
from jaxtune.session import objective
from jaxtune.tasks.text_classification import TextClassification
from jaxtune.training.optimizers.adam import AdamW
from jaxtune.training.optimizers.base import Optimizer
from jaxtune.training.optimizers.sgd import SGD
from jaxtune.training.schedules.shapes import Constant
from jaxtune.training.stage import Depth, Stage, build_stage

REFERENCES = Path(__file__).parent / "references"
TASK = TextClassification()
CLASSES = 3
Batch = dict[str, np.ndarray]


def adamw(rate: float = 1e-2, **settings: Any) -> AdamW:
    return AdamW(schedule=Constant(rate=rate), **settings)


def sgd(rate: float = 0.1, **settings: Any) -> SGD:
    return SGD(schedule=Constant(rate=rate), **settings)


def one_device() -> Placement:
    return Mesh().build(jax.devices()[:1])


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Bit-equal flat dicts, NaN where NaN."""
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def trees_equal(a: Any, b: Any) -> None:
    """Bit-equal pytrees of the same structure; PRNG keys by their numbers."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(numbers(left), numbers(right), err_msg=jax.tree_util.keystr(path))


def numbers(leaf: Any) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def host(tree: Any) -> Any:
    """A copy on the host, which survives the donation of the arrays."""
    return jax.tree.map(lambda leaf: np.array(numbers(leaf)), tree)


# -- BERT -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A recorded checkpoint: its family and its numbers on the host."""

    base: Base
    table: Table
    values: Mapping[str, np.ndarray]  # whole, uncut
    params: frozenset[str]

    def make(self, options: StackOptions, cuts: tuple[int, ...]) -> Callable[[], nnx.Module]:
        return maker(self.base.family, CLASSES, seed=0, options=replace(options, cuts=cuts), dtype="float32")


@functools.cache
def recorded(name: str = "bert") -> Recorded:
    base = open_base(str(REFERENCES / name))
    make = maker(base.family, CLASSES, seed=0, options=StackOptions(), dtype="float32")
    blueprint, table = Blueprint.of(make), Table(base.family.rows())
    placed = shardings(blueprint, table, one_device())
    values = load(base, blueprint, table, plan_load(base, blueprint, table, False), make, placed, lambda key: np.dtype(np.float32))
    return Recorded(base, table, jax.device_get(values), frozenset(blueprint.params))


def stage_of(
    train: Sequence[str] = ("*",),
    *,
    optimizer: Any = None,
    placement: Placement | None = None,
    options: StackOptions | None = None,
    name: str = "bert",
    goal: Any = None,
    previous: Stage | None = None,
    values: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Stage:
    """A phase of a recorded checkpoint."""
    it, placement = recorded(name), placement or one_device()
    values = it.values if values is None else values
    settings = {"steps": 10, "seed": 0} | settings
    return build_stage(
        partial(it.make, options or StackOptions()),
        {key: jnp.array(value) for key, value in values.items() if key not in it.values or key in it.params},
        {key: jnp.array(value) for key, value in values.items() if key in it.values and key not in it.params},
        lambda blueprint: shardings(blueprint, it.table, placement),
        goal or partial(objective, TASK),
        optimizer or adamw(),
        placement,
        patterns=train,
        depth=Depth(it.base.family.layer_of, it.base.family.layers),
        previous=None if previous is None else previous.state,
        **settings,
    )


def texts(rows: int = 16, width: int = 12, seed: int = 0) -> Batch:
    """Ragged rows of tokens with uneven weights; the last row only fills up."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, width + 1, rows)
    segments = (np.arange(width)[None] < lengths[:, None]).astype(np.int32)
    weight = random.uniform(0.2, 2.0, rows).astype(np.float32)
    ids = np.arange(rows, dtype=np.int32) + 100 * seed
    weight[-1], ids[-1] = 0.0, -1
    return {
        "tokens": (random.integers(5, 120, (rows, width)) * segments).astype(np.int32),
        "segment_ids": segments,
        "label": random.integers(0, CLASSES, rows).astype(np.int32),
        "loss_weight": weight,
        "example_id": ids,
    }


@dataclass
class OnDevice:
    """A batch as loop and evaluator read it."""

    arrays: dict[str, jax.Array]
    examples: int
    tokens: int
    ids: np.ndarray


def put(batch: Batch, placement: Placement) -> OnDevice:
    ids = batch["example_id"]
    return OnDevice(placement.put_batch(batch), int((ids >= 0).sum()), int(batch.get("segment_ids", ids >= 0).sum()), ids)


def steps(stage: Stage, batches: Sequence[Batch], *, rate_scale: float = 1.0, first: int = 0) -> list[dict[str, Any]]:
    """Steps without the loop; the reports on the host. `stage.state` is replaced."""
    reports = []
    for number, batch in enumerate(batches, first):
        placement = stage.step.placement
        arrays, scalars = placement.put_batch(batch), placement.put(stage.controls(number, rate_scale))
        stage.state, report = stage.step(stage.state, arrays, scalars)
        reports.append(jax.device_get(report))
    return reports


def whole(flat: Mapping[str, Any], name: str = "bert") -> dict[str, np.ndarray]:
    """Flat parameters of any cutting as uncut ones; what is missing is left out."""
    from jaxtune.layers import stack

    flat = {key: np.asarray(value) for key, value in flat.items()}
    return stack.recut(flat, list(recorded(name).values), lambda x, a, b: x[a:b], np.concatenate)


# -- a module of our own ----------------------------------------------------------------------------------------------------


class Block(nnx.Module):
    """x + dropout(tanh(dense(x)))."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x: jax.Array, *, noise: Dropout | None) -> jax.Array:
        return x + dropout(jnp.tanh(self.dense(x)), noise, "out")


class Tower(nnx.Module):
    """Five equal blocks between two products, [B, 4] -> [B, 3]."""

    LAYERS = 5

    def __init__(self, options: StackOptions, *, rngs: nnx.Rngs):
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.layers = Stack(Block, self.LAYERS, options=options, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, noise: Dropout | None = None) -> jax.Array:
        return self.head(self.layers(self.body(x), noise=noise))


def tower(options: StackOptions | None = None) -> Tower:
    return Tower(options or StackOptions(scan=True), rngs=nnx.Rngs(0))


def tower_depth(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) + 1 if parts[0] == "layers" else {"body": 0, "head": Tower.LAYERS + 1}[parts[0]]


class Small(nnx.Module):
    """body -> tanh -> dropout -> head, [B, 4] -> [B, 3]; compiles in a moment."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.body = nnx.Linear(4, 8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, noise: Dropout | None = None) -> jax.Array:
        return self.head(dropout(jnp.tanh(self.body(x)), noise, "body"))


def small() -> Small:
    return Small(rngs=nnx.Rngs(0))


def small_loss(module: nnx.Module, batch: Mapping[str, jax.Array], noise: Dropout | None) -> Weighted:
    return CrossEntropy()(module(batch["x"], noise), batch)  # type: ignore[operator]


def points(rows: int = 8, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 4)).astype(np.float32)
    return {
        "x": x,
        "label": (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0.5),
        "loss_weight": np.ones(rows, np.float32),
        "example_id": np.arange(rows, dtype=np.int32) + rows * seed,
    }


def small_stage(
    train: Sequence[str] = ("*",),
    *,
    optimizer: Optimizer | Any = None,
    goal: Any = None,
    module: Any = None,
    cut: Callable[[tuple[int, ...]], nnx.Module] | None = None,
    placement: Placement | None = None,
    axes: Callable[[str, tuple[int, ...]], Sequence[str | None]] = lambda key, shape: (None,) * len(shape),
    **settings: Any,
) -> Stage:
    """A phase of the small module, or of another one; `cut` makes a module with stacks cut there, `axes` names an array's logical axes."""
    placement, module = placement or one_device(), module or small()
    blueprint, values = Blueprint.split(module)
    settings = {"steps": 10, "seed": 0} | settings
    return build_stage(
        lambda cuts: lambda: module if cut is None else cut(cuts),
        {key: jnp.array(values[key]) for key in blueprint.params},
        {key: jnp.array(values[key]) for key in blueprint.others},
        lambda blueprint: {
            key: placement.sharding(axes(key, s.shape), s.shape) for key, s in {**blueprint.params, **blueprint.others}.items()
        },
        goal or small_loss,
        optimizer or adamw(),
        placement,
        patterns=train,
        **settings,
    )
