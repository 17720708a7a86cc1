"""From a checkpoint to sharded parameters, tensor by tensor; and from nothing to a new model.

Missing, unexpected and ill-shaped tensors are errors, all named at once, unless they belong to a declared new head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.config.locate import locate
from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.core.paths import matches
from jaxtune.layers import quantized, stack
from jaxtune.layers.stack import StackOptions
from jaxtune.models.adapters import PARTS, Attachment, magnitudes, with_adapters
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.family import Family, Outputs, family_class
from jaxtune.models.hub import Checkpoint, ClassDefaults, TensorInfo, download
from jaxtune.models.weights import Table
from jaxtune.parallel.placement import Placement

SHOWN = 20  # mismatches that are named; a wrong config.json makes hundreds


@dataclass(frozen=True)
class Base:
    """What a run starts from: a family bound to a config, and a checkpoint unless the model is new."""

    family: Family
    checkpoint: Checkpoint | None
    reference: str

    @property
    def licence(self) -> str | None:
        return None if self.checkpoint is None else self.checkpoint.licence

    @property
    def folder(self) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint.folder

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in config.json, in order; empty where the checkpoint names none."""
        names = self.family.raw.get("id2label") or {}
        return tuple(names[key] for key in sorted(names, key=int))


def open_base(reference: str | Mapping[str, Any], what: str = "model.base") -> Base:
    """Opens a hub id, folder or package:// address, or `{family, config}` for a new model; no tensor is read.

    `what` is the setting that names it, for messages.

    Raises:
        ConfigError: nothing is there.
        ModelError: config.json is not one this package can serve.
    """
    if isinstance(reference, str):
        checkpoint = Checkpoint.open(locate(reference, what, download))
        config, model_type = checkpoint.config, checkpoint.config["model_type"]
    else:
        checkpoint, model_type, config = None, reference["family"], reference["config"]
    cls = family_class(model_type, own=not isinstance(reference, str))
    family = cls(config, ClassDefaults(cls.model_type))
    return Base(family, checkpoint, reference if isinstance(reference, str) else f"new {model_type}")


def maker(
    family: Family,
    outputs: Outputs | None,
    *,
    seed: int,
    options: StackOptions,
    dtype: Any,
    adapter: Attachment | None = None,
    quantize: quantized.Format | None = None,
) -> Callable[[], nnx.Module]:
    """A function that builds the module, freshly initialised from `seed`, with the head that a task needs (None: no head)."""

    def build(cuts: tuple[int, ...]) -> nnx.Module:
        rngs = nnx.Rngs(params=jax.random.key(seed))
        module: Any = family.backbone(options=replace(options, cuts=cuts), dtype=dtype, rngs=rngs)
        of_head = nnx.Rngs(params=jax.random.fold_in(jax.random.key(seed), 1))
        if outputs is not None:
            module.head = family.language_head(rngs=of_head) if outputs == "language" else family.head(outputs, rngs=of_head)
        return module

    return lambda: with_adapters(build, options.cuts, adapter, quantize, jax.random.fold_in(jax.random.key(seed), 2))


def shardings(blueprint: Blueprint, table: Table, placement: Placement) -> dict[str, Any]:
    """Where every variable lives, by the table's axes."""
    return {key: placement.sharding(table.axes(key), shape.shape) for key, shape in {**blueprint.params, **blueprint.others}.items()}


@dataclass(frozen=True)
class Plan:
    """Which variable comes from which tensors, and which start fresh; made from headers alone."""

    sources: Mapping[str, tuple[tuple[str, ...], ...]]  # stored path -> tensor names (mostly one), for each row
    fresh: frozenset[str]  # stored paths
    ignored: tuple[str, ...]  # tensors left over on purpose


def plan_load(base: Base, blueprint: Blueprint, table: Table, new_head: bool) -> Plan:
    """Matches the checkpoint's headers with the model.

    Raises:
        ModelError: tensors without a parameter, parameters without a tensor, shapes that do not fit: all of them.
    """
    if base.checkpoint is None:
        return Plan({}, frozenset(blueprint.variables), ())
    added = {key for key in blueprint.params if key.rpartition(".")[2] in PARTS}  # by an adapter: no base has them
    wanted = {key: shape for key, shape in with_whole_kernels({**blueprint.params, **blueprint.others}).items() if key not in added}
    tensors, family = base.checkpoint.tensors, base.family
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""

    def tensor_names(name: str) -> tuple[str, ...]:
        own = table.place(name).tensors
        return own if name.startswith("head.") else tuple(prefix + tensor for tensor in own)

    sources = {key: tuple(tensor_names(name) for name in stack.names(key)) for key in wanted}
    fresh = {key for key in wanted if new_head and key.startswith("head.")}
    for pattern in family.renewable:  # starts fresh where the checkpoint has nothing of it; to have a part of it is damage
        part = [key for key in wanted if matches(stack.names(key)[0], (pattern,))]
        if not any(name in tensors for key in part for names in sources[key] for name in names):
            fresh.update(part)
    sources = {key: names for key, names in sources.items() if key not in fresh}
    problems = [problem for key, names in sources.items() for problem in misfits(table, key, names, wanted[key].shape, tensors)]
    used = {name for rows in sources.values() for names in rows for name in names}
    left = [name for name in tensors if name not in used]
    ignored = [name for name in left if matches(name, family.unused)]
    problems += [f"tensor {name} {list(tensors[name].shape)} belongs to no parameter" for name in left if name not in ignored]
    if problems:
        more = [f"{len(problems) - SHOWN} more mismatches"] if len(problems) > SHOWN else []
        raise ModelError([f"{base.reference}: {problem}" for problem in problems[:SHOWN] + more])
    return Plan(sources, frozenset(fresh | added), tuple(ignored))


def with_whole_kernels(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """The same with the kernel in the place of the codes and scales that are made of it."""
    whole = {}
    for key, shape in shapes.items():
        if key.endswith(".kernel.codes"):
            whole[key.removesuffix(".codes")] = jax.ShapeDtypeStruct(quantized.kernel_shape(shape), jnp.float32)
        elif not key.endswith(".kernel.scales"):
            whole[key] = shape
    return whole


def misfits(
    table: Table, key: str, rows: tuple[tuple[str, ...], ...], shape: tuple[int, ...], tensors: Mapping[str, TensorInfo]
) -> Iterator[str]:
    """What keeps the tensors from filling one stored array."""
    each = shape[1:] if stack.is_stacked(key) else shape
    for name, tensor_names in zip(stack.names(key), rows, strict=True):
        place = table.place(name)
        for tensor_name in tensor_names:
            if tensor_name not in tensors:
                yield f"parameter {name} has no tensor {tensor_name} in the checkpoint"
            elif not place.row.fits(tensors[tensor_name].shape, each, place.part):
                found = f"tensor {tensor_name} {list(tensors[tensor_name].shape)} does not fit parameter {name} {list(each)}"
                new_head = key.startswith("head.") and key != "head.embedding"
                hint = "another number of classes needs a new head" if new_head else "config.json and the weights disagree"
                yield f"{found} by '{place.row.layout}'; {hint}"


def load(
    base: Base,
    blueprint: Blueprint,
    table: Table,
    plan: Plan,
    make: Callable[[], nnx.Module],
    placed: Mapping[str, Any],
    dtype_of: Callable[[str], Any],
    given: Mapping[str, np.ndarray] | None = None,
) -> Flat:
    """Every variable on its devices. Host memory holds one stored array at a time, of a quantized kernel one layer in float.

    Args:
        dtype_of: stored path -> dtype to keep it in; codes and scales have their own.
        given: per-layer name -> values that are taken in the place of fresh ones or the base's.

    Raises:
        ModelError: a tensor holds values that are not finite (all such tensors).
    """
    values = {key: cast(value, dtype_of(key)) for key, value in blueprint.initialise(make, plan.fresh, placed).items()}
    problems: list[str] = []
    shapes = {**blueprint.params, **blueprint.others}
    for key, rows in plan.sources.items():
        try:
            if key in shapes:
                hosts = {key: assemble(base, table, key, rows, shapes[key].shape, dtype_of(key))}
            else:
                hosts = assemble_quantized(base, table, key, rows, shapes)
        except ModelError as error:
            problems += error.problems
            continue
        for name, host in hosts.items():
            values[name] = jax.make_array_from_callback(host.shape, placed[name], lambda index, host=host: host[index])
    if problems:
        raise ModelError(problems)
    given = given or {}
    values |= {key: with_given(key, value, given) for key, value in values.items() if not given.keys().isdisjoint(stack.names(key))}
    values |= magnitudes(values, given)
    return {key: values[key] for key in blueprint.variables}


def with_given(key: str, value: jax.Array, given: Mapping[str, np.ndarray]) -> jax.Array:
    """A stored array with the given ones in the place of its own."""
    names = stack.names(key)
    host = np.empty(value.shape, value.dtype) if given.keys() >= set(names) else np.array(value)
    for row, name in enumerate(names):
        if name in given:
            host[row if stack.is_stacked(key) else ...] = given[name]
    return jax.make_array_from_callback(host.shape, value.sharding, lambda index: host[index])


def assemble(base: Base, table: Table, key: str, rows: tuple[tuple[str, ...], ...], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """One stored array on the host, its rows read one tensor after the other."""
    stacked = stack.is_stacked(key)
    each = shape[1:] if stacked else shape
    host = np.empty(shape, dtype)
    for row, (name, tensor_names) in enumerate(zip(stack.names(key), rows, strict=True)):
        host[row if stacked else ...] = read_layer(base, table, name, tensor_names, each)
    return host


def assemble_quantized(
    base: Base, table: Table, key: str, rows: tuple[tuple[str, ...], ...], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
    """Codes and scales of one stored kernel on the host, quantized layer by layer."""
    wanted = [shapes[f"{key}.codes"], shapes[f"{key}.scales"]]
    hosts = [np.empty(shape.shape, shape.dtype) for shape in wanted]
    form, each = quantized.format_of(wanted[0].dtype), quantized.kernel_shape(wanted[0])[-2:]
    for row, (name, tensor_names) in enumerate(zip(stack.names(key), rows, strict=True)):
        made = quantized.quantize(read_layer(base, table, name, tensor_names, each), form)
        for host, part in zip(hosts, made, strict=True):
            host[row if stack.is_stacked(key) else ...] = part
    return {f"{key}.codes": hosts[0], f"{key}.scales": hosts[1]}


def read_layer(base: Base, table: Table, name: str, tensor_names: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """One per-layer array from its tensors, in their dtype."""
    assert base.checkpoint is not None
    place = table.place(name)
    ours = place.row.to_ours([base.checkpoint.read(tensor_name) for tensor_name in tensor_names], shape, place.part)
    if ours.dtype.kind not in "iub" and not np.isfinite(ours).all():
        raise ModelError(f"tensor {tensor_names[0]} holds values that are not finite; the checkpoint is damaged")
    return ours


def cast(value: jax.Array, dtype: Any) -> jax.Array:
    return value if value.dtype == jnp.dtype(dtype) else value.astype(dtype)


def check_licence(base: Base, allowed: tuple[str, ...] | None) -> None:
    """Raises:
    ConfigError: the base's licence is not among the allowed ones.
    """
    if allowed is not None and base.checkpoint is not None and base.licence not in allowed:
        found = base.licence or "no licence in its model card"
        raise ConfigError(
            f"model.base {base.reference}: found {found}; allowed_licences is {', '.join(allowed)}: add it or choose another base"
        )
