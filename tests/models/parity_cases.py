"""The recorded cases of tests/references as loaded models, shared by the tests of this folder. Each case loads and compiles once."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxtune.layers import stack
from jaxtune.layers.activations import ACTIVATIONS
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.family import Outputs
from jaxtune.models.load import Base, Plan, load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.mesh import Mesh
from jaxtune.parallel.placement import Placement

REFERENCES = Path(__file__).resolve().parents[1] / "references"
INDEX: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads((REFERENCES / "index.json").read_text())["cases"]}
LANGUAGE = tuple(name for name, row in INDEX.items() if row["loss"] == "language")
NAMES = tuple(name for name in INDEX if name not in LANGUAGE)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in a model."""

    base: Base
    blueprint: Blueprint
    table: Table
    plan: Plan
    values: Flat
    placement: Placement


def one_device() -> Placement:
    return Mesh().build(jax.devices()[:1])


def load_folder(
    folder: Path | str,
    outputs: Outputs | None,
    *,
    new_head: bool = False,
    options: StackOptions | None = None,
    dtype: Any = jnp.float32,
    placement: Placement | None = None,
) -> Loaded:
    """The way a run loads its base: headers first, then tensor by tensor onto the devices."""
    base = open_base(str(folder))
    placement = placement or one_device()
    make = maker(base.family, outputs, seed=0, options=options or StackOptions(), dtype=dtype)
    blueprint, table = Blueprint.of(make), Table(base.family.rows())
    plan = plan_load(base, blueprint, table, new_head)
    placed = shardings(blueprint, table, placement)
    values = load(base, blueprint, table, plan, make, placed, lambda key: jnp.float32)
    return Loaded(base, blueprint, table, plan, values, placement)


def outputs_of(name: str) -> int | None:
    """Logits of a case; None for a bare model."""
    return reference(name)["logits"].shape[-1] if "logits" in INDEX[name]["outputs"] else None


@functools.cache
def loaded(name: str) -> Loaded:
    return load_folder(REFERENCES / name, outputs_of(name))


@functools.cache
def reference(name: str) -> dict[str, np.ndarray]:
    return load_file(REFERENCES / name / "reference.safetensors")


@functools.cache
def stored(name: str) -> dict[str, np.ndarray]:
    """The checkpoint's tensors."""
    return load_file(REFERENCES / name / "model.safetensors")


def batch_of(name: str) -> dict[str, np.ndarray]:
    """The recorded inputs as a batch of ours."""
    values = reference(name)
    if "pixel_values" in values:
        return {"image": values["pixel_values"].transpose(0, 2, 3, 1)}
    batch = {"tokens": values["input_ids"], "segment_ids": values["attention_mask"]}
    if "token_type_ids" in values:
        batch["token_types"] = values["token_type_ids"]
    return {key: value.astype(np.int32) for key, value in batch.items()}


def forward(model: Any, batch: Mapping[str, jax.Array], training: bool = False) -> dict[str, jax.Array]:
    """`tokens`, `pooled` and, with a head, `logits`."""
    features = model(batch, None, training)
    found = {"pooled": features.pooled, "tokens": features.tokens}
    return found if model.head is None else {**found, "logits": model.head(features)}


def logits_of(it: Loaded, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits of a loaded model, on its mesh."""

    @jax.jit
    def run(values: Flat, batch: dict[str, jax.Array]) -> jax.Array:
        return forward(it.blueprint.build(values), batch)["logits"]

    with it.placement.active():
        return np.asarray(run(it.values, it.placement.put_batch(batch)))


@functools.cache
def run(name: str, training: bool = False) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs, loss, gradients by Hugging Face name, and the variables without gradient after the call."""
    it, values, kind = loaded(name), reference(name), INDEX[name]["loss"]
    pooler = {part: stored(name)[f"pooler.dense.{part}"] for part in ("weight", "bias")} if name.startswith("vit_bare") else {}

    def loss(params: Flat, others: Flat, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        model = it.blueprint.build(params, others)
        found = forward(model, batch, training)
        if pooler:  # a bare ViT's pooler is no part of our model: the reference needs it, so it stands here
            activation = ACTIVATIONS[it.base.family.raw["pooler_act"]]
            found["pooled"] = activation(found["pooled"] @ pooler["weight"].T + pooler["bias"][None])
        return loss_of(kind, found, values), (found, it.blueprint.changed(model))

    params = {key: it.values[key] for key in it.blueprint.params}
    others = {key: it.values[key] for key in it.blueprint.others}
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (found, changed)), gradients = jax.device_get(step(params, others, batch_of(name)))
    return found, value, by_tensor(it, gradients), by_tensor(it, changed)


def loss_of(kind: str, found: Mapping[str, jax.Array], values: Mapping[str, np.ndarray]) -> jax.Array:
    """transformers' loss of this kind, a mean over the batch; for bare models the outputs times recorded cotangents."""
    if kind == "cotangents":
        total = jnp.sum(found["tokens"] * values["cotangent.last_hidden_state"])
        return total + jnp.sum(found["pooled"] * values["cotangent.pooler_output"]) if "pooler_output" in values else total
    logits, labels = found["logits"], values["labels"]
    if kind == "regression":
        return jnp.mean(jnp.square(logits[:, 0] - labels))
    if kind == "multi_label_classification":
        return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def by_tensor(it: Loaded, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by stored path -> arrays by the checkpoint's tensor names and layouts."""
    assert it.base.checkpoint is not None
    prefix = it.base.family.prefix
    if not any(name.startswith(prefix) for name in it.base.checkpoint.tensors):
        prefix = ""
    arrays = {}
    for key, value in flat.items():
        for row, name in enumerate(stack.names(key)):
            arrays[name] = np.asarray(value)[row] if stack.is_stacked(key) else np.asarray(value)
    heads = {it.table.place(name).tensor for name in arrays if name.startswith("head.")}
    return {name if name in heads else prefix + name: tensor for name, tensor in it.table.export(arrays)}
