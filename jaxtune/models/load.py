"""From a checkpoint to sharded parameters, tensor by tensor; and from nothing to a new model.

Missing, unexpected and ill-shaped tensors are errors, all named at once, unless they belong to a declared new head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.config.locate import locate
from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.core.paths import matches
from jaxtune.layers import stack
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.family import Family, family_class
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


def open_base(reference: str | Mapping[str, Any]) -> Base:
    """Opens a hub id, folder or package:// address, or `{family, config}` for a new model; no tensor is read.

    Raises:
        ConfigError: nothing is there.
        ModelError: config.json is not one this package can serve.
    """
    if isinstance(reference, str):
        checkpoint = Checkpoint.open(locate(reference, "model.base", download))
        config, model_type = checkpoint.config, checkpoint.config["model_type"]
    else:
        checkpoint, model_type, config = None, reference["family"], reference["config"]
    cls = family_class(model_type, own=not isinstance(reference, str))
    family = cls(config, ClassDefaults(cls.model_type))
    return Base(family, checkpoint, reference if isinstance(reference, str) else f"new {model_type}")


def maker(family: Family, outputs: int | None, *, seed: int, options: StackOptions, dtype: Any) -> Callable[[], nnx.Module]:
    """A function that builds the module with a head of `outputs` logits (None: no head), freshly initialised from `seed`."""

    def make() -> nnx.Module:
        rngs = nnx.Rngs(params=jax.random.key(seed))
        module: Any = family.backbone(options=options, dtype=dtype, rngs=rngs)
        if outputs is not None:
            module.head = family.head(outputs, rngs=nnx.Rngs(params=jax.random.fold_in(jax.random.key(seed), 1)))
        return module

    return make


def shardings(blueprint: Blueprint, table: Table, placement: Placement) -> dict[str, Any]:
    """Where every variable lives, by the table's axes."""
    return {key: placement.sharding(table.axes(key), shape.shape) for key, shape in {**blueprint.params, **blueprint.others}.items()}


@dataclass(frozen=True)
class Plan:
    """Which variable comes from which tensors, and which start fresh; made from headers alone."""

    sources: Mapping[str, tuple[str, ...]]  # stored path -> tensor names, one per row
    fresh: frozenset[str]  # stored paths
    ignored: tuple[str, ...]  # tensors left over on purpose


def plan_load(base: Base, blueprint: Blueprint, table: Table, new_head: bool) -> Plan:
    """Matches the checkpoint's headers with the model.

    Raises:
        ModelError: tensors without a parameter, parameters without a tensor, shapes that do not fit: all of them.
    """
    wanted = {**blueprint.params, **blueprint.others}
    if base.checkpoint is None:
        return Plan({}, frozenset(wanted), ())
    tensors, family = base.checkpoint.tensors, base.family
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""

    def tensor_name(name: str) -> str:
        return table.place(name).tensor if name.startswith("head.") else prefix + table.place(name).tensor

    sources = {key: tuple(tensor_name(name) for name in stack.names(key)) for key in wanted}
    fresh = {key for key in wanted if new_head and key.startswith("head.")}
    for pattern in family.renewable:  # starts fresh where the checkpoint has nothing of it; to have a part of it is damage
        part = [key for key in wanted if matches(stack.names(key)[0], (pattern,))]
        if not any(name in tensors for key in part for name in sources[key]):
            fresh.update(part)
    sources = {key: names for key, names in sources.items() if key not in fresh}
    problems = [problem for key, names in sources.items() for problem in misfits(table, key, names, wanted[key].shape, tensors)]
    used = {name for names in sources.values() for name in names}
    left = [name for name in tensors if name not in used]
    ignored = [name for name in left if matches(name, family.unused)]
    problems += [f"tensor {name} {list(tensors[name].shape)} belongs to no parameter" for name in left if name not in ignored]
    if problems:
        more = [f"{len(problems) - SHOWN} more mismatches"] if len(problems) > SHOWN else []
        raise ModelError([f"{base.reference}: {problem}" for problem in problems[:SHOWN] + more])
    return Plan(sources, frozenset(fresh), tuple(ignored))


def misfits(
    table: Table, key: str, tensor_names: tuple[str, ...], shape: tuple[int, ...], tensors: Mapping[str, TensorInfo]
) -> Iterator[str]:
    """What keeps the tensors from filling one stored array."""
    each = shape[1:] if stack.is_stacked(key) else shape
    for name, tensor_name in zip(stack.names(key), tensor_names, strict=True):
        row = table.place(name).row
        if tensor_name not in tensors:
            yield f"parameter {name} has no tensor {tensor_name} in the checkpoint"
        elif not row.fits(tensors[tensor_name].shape, each):
            found = f"tensor {tensor_name} {list(tensors[tensor_name].shape)} does not fit parameter {name} {list(each)} by '{row.layout}'"
            hint = "another number of classes needs a new head" if key.startswith("head.") else "config.json and the weights disagree"
            yield f"{found}; {hint}"


def load(
    base: Base,
    blueprint: Blueprint,
    table: Table,
    plan: Plan,
    make: Callable[[], nnx.Module],
    placed: Mapping[str, Any],
    dtype_of: Callable[[str], Any],
) -> Flat:
    """Every variable on its devices. Host memory holds one stored array at a time.

    Args:
        dtype_of: stored path -> dtype to keep it in.

    Raises:
        ModelError: a tensor holds values that are not finite (all such tensors).
    """
    values = {key: cast(value, dtype_of(key)) for key, value in blueprint.initialise(make, plan.fresh, placed).items()}
    problems: list[str] = []
    for key, tensor_names in plan.sources.items():
        target = blueprint.params.get(key) or blueprint.others[key]
        try:
            host = assemble(base, table, key, tensor_names, target.shape, dtype_of(key))
        except ModelError as error:
            problems += error.problems
            continue
        values[key] = jax.make_array_from_callback(host.shape, placed[key], lambda index, host=host: host[index])
    if problems:
        raise ModelError(problems)
    return {key: values[key] for key in blueprint.variables}


def assemble(base: Base, table: Table, key: str, tensor_names: tuple[str, ...], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """One stored array on the host, its rows read one tensor after the other."""
    assert base.checkpoint is not None
    stacked = stack.is_stacked(key)
    each = shape[1:] if stacked else shape
    host = np.empty(shape, dtype)
    for row, (name, tensor_name) in enumerate(zip(stack.names(key), tensor_names, strict=True)):
        place = table.place(name)
        tensor = base.checkpoint.read(tensor_name)
        ours = place.row.to_ours(tensor, each)[place.part]
        if ours.dtype.kind not in "iub" and not np.isfinite(ours).all():
            raise ModelError(f"tensor {tensor_name} holds values that are not finite; the checkpoint is damaged")
        host[row if stacked else ...] = ours
    return host


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
