"""Recorded checkpoints with adapters on them, loaded the way a run loads them; shared by several tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxtune.layers.stack import StackOptions
from jaxtune.model_session import per_layer_shapes
from jaxtune.models.adapters import Adapter, Attachment, forms_of, sizes
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel.placement import Placement

ADAPTERS = cases.REFERENCES / "adapters"
NAMES = tuple(sorted(path.name for path in ADAPTERS.iterdir() if path.is_dir()))


@dataclass(frozen=True)
class Adapted:
    """A loaded checkpoint, and what was attached to it."""

    it: cases.Loaded
    attachment: Attachment | None
    module: nnx.Module  # without numbers

    @property
    def forms(self) -> Mapping[str, Any]:
        return forms_of(self.module)


def base_of(name: str) -> str:
    """The recorded base case of an adapter."""
    return json.loads((ADAPTERS / name / "adapter_config.json").read_text())["base_model_name_or_path"]


def adapted(
    folder: Path | str,
    adapter: Adapter | None,
    outputs: Any = 3,
    *,
    quantize: Any = None,
    options: StackOptions | None = None,
    placement: Placement | None = None,
) -> Adapted:
    base = open_base(str(folder))
    placement = placement or cases.one_device()
    attachment = None if adapter is None else adapter.open(base, has_head=True)
    make = maker(base.family, outputs, seed=0, options=options or StackOptions(), dtype=jnp.float32, adapter=attachment, quantize=quantize)
    blueprint, table, module = Blueprint.of(make), Table(base.family.rows()), nnx.eval_shape(make)
    plan = plan_load(base, blueprint, table, False)
    numbers = {} if attachment is None else attachment.numbers(sizes(module), per_layer_shapes(blueprint.params))
    placed = shardings(blueprint, table, placement)
    values = load(base, blueprint, table, plan, make, placed, lambda key: jnp.float32, numbers)
    return Adapted(cases.Loaded(base, blueprint, table, plan, values, placement), attachment, module)


def shaken(it: Adapted, seed: int = 0) -> Adapted:
    """The same with random numbers in the adapter, so that it does something."""
    random = np.random.default_rng(seed)
    values = dict(it.it.values)
    for key, value in values.items():
        last = key.rpartition(".")[2]
        if last in ("lora_a", "lora_b"):
            values[key] = jnp.asarray(0.2 * random.standard_normal(value.shape).astype(np.float32))
        elif last in ("magnitude", "scale_in", "scale_out"):
            values[key] = value * jnp.asarray(1 + 0.3 * random.standard_normal(value.shape).astype(np.float32))
    values = {key: jax.device_put(value, it.it.values[key].sharding) for key, value in values.items()}
    return Adapted(cases.Loaded(it.it.base, it.it.blueprint, it.it.table, it.it.plan, values, it.it.placement), it.attachment, it.module)


def logits(it: cases.Loaded, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Logits of a classifier, or of a language model at every token."""

    @jax.jit
    def run(values: Any, batch: Any) -> jax.Array:
        model: Any = it.blueprint.build(values)
        features = model(batch)
        return model.head.logits(model, features.tokens) if hasattr(model.head, "logits") else model.head(features)

    with it.placement.active():
        return np.asarray(run(it.values, it.placement.put_batch(batch)))


def wide_bert(folder: Path) -> Path:
    """A random BERT whose dense layers have 64 or 128 inputs, as nf4 needs them."""
    known = json.loads((cases.REFERENCES / "bert" / "config.json").read_text())
    grown = {32: 64, known["intermediate_size"]: 128}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**known, "hidden_size": 64, "intermediate_size": 128}))
    random = np.random.default_rng(3)
    tensors = {}
    for name, small in cases.stored("bert").items():
        noise = random.standard_normal([grown.get(size, size) for size in small.shape]).astype(np.float32)
        is_scale = name.endswith("LayerNorm.weight")
        tensors[name] = 1 + 0.1 * noise if is_scale else 0.1 * noise
    save_file(tensors, folder / "model.safetensors")
    return folder


def expected(name: str) -> np.ndarray:
    return load_file(ADAPTERS / name / "expected.safetensors")["logits"]
