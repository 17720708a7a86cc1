"""Adapters multiplied into the kernels they stand beside, in float32 on the host, one layer after the other, and verified.

A run may have computed with kernels in bfloat16 or in 4 bits; what is merged is the base file's own tensor, so nothing that quantization or
the computation rounded away gets into the exported model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.core.errors import ModelError
from jaxtune.layers import stack
from jaxtune.layers.linear import Form, Linear
from jaxtune.layers.quantized import kernel_shape
from jaxtune.models.adapters import PARTS
from jaxtune.models.blueprint import Flat
from jaxtune.models.load import Base, Plan, read_layer
from jaxtune.models.weights import Table

WITHIN = 1e-4  # of the layer's greatest output; float32 leaves about 1e-6
PROBES = 8

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Merged:
    """
    Attributes:
        values: stored path -> array without adapters; every kernel is whole.
        changed: per-layer names of what the merge changed.
        difference: greatest distance between outputs of a layer merged and with its adapter, relative to the layer's greatest output.
    """

    values: Flat
    changed: frozenset[str]
    difference: float


def merge(base: Base, table: Table, plan: Plan, forms: Mapping[str, Form], values: Mapping[str, Any], trained: frozenset[str]) -> Merged:
    """The model without its adapters.

    Args:
        plan: where the base's kernels come from.
        forms: stored path of a dense layer -> what is attached to it.
        values: every variable of the model.
        trained: per-layer names whose numbers are those of `values` and not the base's.

    Raises:
        ModelError: a merged layer does not compute what it computed with its adapter.
    """
    out = {key: value for key, value in values.items() if key.rpartition(".")[2] not in PARTS and ".kernel." not in key}
    for key in [key for key in values if key.endswith(".kernel.codes")]:
        # of the right shape and no size: an untouched kernel is copied from the base's file
        out[key.removesuffix(".codes")] = np.broadcast_to(np.float32(0), kernel_shape(values[key]))
    changed: set[str] = set()
    worst = 0.0
    for path, form in forms.items():
        names, joined = stack.names(path), np.stack if stack.is_stacked(path) else lambda rows: rows[0]
        parts = {part: rows_of(values[f"{path}.{part}"], path) for part in sorted(PARTS) if f"{path}.{part}" in values}
        shape = kernel_shape(values[f"{path}.kernel.codes"]) if f"{path}.kernel.codes" in values else values[f"{path}.kernel"].shape
        kernels = own(base, table, plan, values, f"{path}.kernel", tuple(shape[-2:]), trained)
        has_bias = f"{path}.bias" in values
        biases = own(base, table, plan, values, f"{path}.bias", tuple(shape[-1:]), trained) if has_bias else [None] * len(names)
        found = []
        for row, (name, kernel, bias) in enumerate(zip(names, kernels, biases, strict=True)):
            here = {part: rows[row] for part, rows in parts.items()}
            found.append(merged(kernel, bias, here, form))
            worst = max(worst, distance(name, kernel, bias, here, form, *found[-1]))
        out[f"{path}.kernel"] = joined([kernel for kernel, _ in found])
        changed.update(f"{name}.kernel" for name in names)
        if has_bias and form.scale_out:
            out[f"{path}.bias"] = joined([bias for _, bias in found])
            changed.update(f"{name}.bias" for name in names)
    return Merged(out, frozenset(changed), worst)


def rows_of(value: Any, path: str) -> np.ndarray:
    """A stored array on the host in float32, one row per layer."""
    host = np.asarray(jax.device_get(value)).astype(np.float32)
    return host if stack.is_stacked(path) else host[None]


def own(
    base: Base, table: Table, plan: Plan, values: Mapping[str, Any], key: str, shape: tuple[int, ...], trained: frozenset[str]
) -> list[np.ndarray]:
    """The layers of a stored array of this per-layer shape in float32: the base file's, unless trained or from nowhere else."""
    out = []
    for row, name in enumerate(stack.names(key)):
        if base.checkpoint is not None and name not in trained and key in plan.sources:
            out.append(read_layer(base, table, name, plan.sources[key][row], shape).astype(np.float32))
        else:
            out.append(rows_of(values[key], key)[row])
    return out


def merged(kernel: np.ndarray, bias: np.ndarray | None, parts: Arrays, form: Form) -> tuple[np.ndarray, np.ndarray | None]:
    """Kernel [I, O] and bias [O] that do what these did with the adapter."""
    if form.scale_in:
        kernel = kernel * parts["scale_in"][:, None]
    if form.rank:
        kernel = kernel + np.float32(form.scale) * (parts["lora_a"] @ parts["lora_b"])
    if form.magnitude:
        kernel = kernel * (parts["magnitude"] / np.sqrt(np.square(kernel).sum(0)))[None]
    if form.scale_out:
        kernel, bias = kernel * parts["scale_out"][None], None if bias is None else bias * parts["scale_out"]
    return kernel, bias


def distance(
    name: str, kernel: np.ndarray, bias: np.ndarray | None, parts: Arrays, form: Form, after: np.ndarray, bias_after: np.ndarray | None
) -> float:
    """How far the merged layer's outputs are from the layer's own, for a few random inputs.

    Raises:
        ModelError: too far, or not finite.
    """
    inputs = np.random.default_rng(0).standard_normal((PROBES, kernel.shape[0]), np.float32)
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(with_adapter(kernel, bias, parts, form)(jnp.asarray(inputs)))
    found = inputs @ after + (0.0 if bias_after is None else bias_after[None])
    difference = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))
    if not difference <= WITHIN:
        raise ModelError(
            f"{name}: merged, its outputs differ by {difference:.1e} of the greatest; nothing was written (allowed {WITHIN:.0e})"
        )
    return difference


def with_adapter(kernel: np.ndarray, bias: np.ndarray | None, parts: Arrays, form: Form) -> Linear:
    """A dense layer with these numbers."""
    layer = nnx.eval_shape(lambda: Linear(*kernel.shape, bias=bias is not None, rngs=nnx.Rngs(0)))
    layer.kernel = nnx.Param(jnp.asarray(kernel))
    layer.bias = None if bias is None else nnx.Param(jnp.asarray(bias))
    layer.form = form
    for part, value in parts.items():
        setattr(layer, part, nnx.Param(jnp.asarray(value)))
    return layer
