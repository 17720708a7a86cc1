"""An adapter as a folder that `peft.PeftModel.from_pretrained` reads, bit for bit the numbers it was trained to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.layers import stack
from jaxtune.layers.linear import Form
from jaxtune.models.adapters import PARTS, Sizes
from jaxtune.models.export import whole_folder
from jaxtune.models.fused import Dense, dense
from jaxtune.models.load import Base
from jaxtune.models.peft import FILES, RANKS, START
from jaxtune.models.weights import Table, kernel_beside


def write(
    folder: Path,
    base: Base,
    table: Table,
    linears: Sizes,
    forms: Mapping[str, Form],
    values: Mapping[str, Any],
    *,
    saved: frozenset[str] = frozenset(),
    dropout: float = 0.0,
    has_head: bool = True,
    task_type: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes the adapter as `peft.PeftModel.from_pretrained` reads it.

    Args:
        linears: sizes of every dense layer by per-layer path.
        forms: stored path of a dense layer -> what is attached to it.
        values: stored path -> array, at least of the adapter and of `saved`.
        saved: per-layer names of other parameters that were trained: a new head.
        files: name -> text of further files.

    Raises:
        ConfigError: peft's format cannot hold this adapter (all reasons), or the folder exists and is not empty.
    """
    from safetensors.numpy import save_file

    problems = unsaveable(table, linears, forms, saved)
    if problems:
        raise ConfigError(problems)
    prefix = base.family.prefix if has_head else ""
    modules = {module_of(table, prefix, name) for name in saved}
    arrays = per_layer(values, lambda name: name.rpartition(".")[2] in PARTS)
    beside = per_layer(values, lambda name: not kernel_beside(name) and module_of(table, prefix, name) in modules)
    of_layer = {name: form for path, form in forms.items() for name in stack.names(path)}
    tensors: dict[str, np.ndarray] = {}
    adapted: dict[str, Form] = {}
    ranks: dict[str, list[int]] = {}
    there = dense(table, linears, prefix)
    for module, layer in there.items():
        if layer is None or of_layer.keys().isdisjoint(layer.parts):
            continue
        form, parts, split = joined(layer, of_layer, arrays)
        adapted[module] = form
        tensors |= {f"{START}{module}.{end}": np.ascontiguousarray(value) for end, value in parts.items()}
        if split is not None:
            ranks[module] = split
    tensors |= {START + name: tensor for name, tensor in whole_modules(table, prefix, beside).items()}
    config = config_of(adapted, there, dropout, task_type, base.reference, sorted(modules))
    with whole_folder(folder) as partial:
        save_file(tensors, partial / FILES[1], metadata={"format": "pt", **({RANKS: json.dumps(ranks)} if ranks else {})})
        (partial / FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, text in (files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    return folder


def unsaveable(table: Table, linears: Sizes, forms: Mapping[str, Form], saved: frozenset[str]) -> list[str]:
    """What peft's format has no place for: known before anything trains."""
    of_layer = {name: form for path, form in forms.items() for name in stack.names(path)}
    hint = 'write model.adapter.export: merged, or train: ["*.lora_*"] alone'
    under = sorted(name for name in saved if name.rpartition(".")[0] in of_layer)
    problems = [
        f"{name}: peft's format has no place for a trained {name.rpartition('.')[2]} under an adapter"
        + (f" (nor for {len(under) - 1} more); " if under[1:] else "; ")
        + hint
        for name in under[:1]
    ]
    for module, layer in dense(table, linears, "").items():
        names = (
            [name for name in linears if table.place(f"{name}.kernel").tensor.removesuffix(".weight") == module]
            if layer is None
            else list(layer.parts)
        )
        mine = [of_layer[name] for name in names if name in of_layer]
        if not mine:
            continue
        whole = len(mine) == len(names)
        if layer is None:
            problems.append(
                f"{names[0]}: {module} is no dense layer in transformers, so peft's format has no place for its adapter; write model.adapter.export: merged"
            )
        elif len(names) > 1 and (any(form.scale_in for form in mine) or (mine[0].magnitude and not whole)):
            problems.append(
                f"{', '.join(names)}: one layer in transformers, {module}; DoRA must target all of them and IA3 only their outputs, or write model.adapter.export: merged"
            )
        elif any(form.scale_in and form.scale_out for form in mine):
            problems.append(f"{names[0]}: peft's IA3 scales inputs or outputs of a layer, not both")
    return problems


def per_layer(values: Mapping[str, Any], wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The wanted arrays by per-layer name, float32 on the host."""
    out: dict[str, np.ndarray] = {}
    for key, value in values.items():
        if any(map(wanted, stack.names(key))):
            host = np.asarray(value, np.float32)
            out |= {name: host[row] if stack.is_stacked(key) else host for row, name in enumerate(stack.names(key))}
    return out


def joined(
    layer: Dense, forms: Mapping[str, Form], arrays: Mapping[str, np.ndarray]
) -> tuple[Form, dict[str, np.ndarray], list[int] | None]:
    """The adapter of one Hugging Face layer: its form, tensors by peft's ends, and the ranks of its parts where they are stacked."""
    mine = {name: (forms[name], seat) for name, seat in layer.parts.items() if name in forms}
    (first, (form, seat)), *_ = mine.items()
    if not form.rank:
        if form.scale_in:
            vector = np.ones((1, layer.inputs), np.float32)
            vector[0, seat.inputs] = arrays[f"{first}.scale_in"]
            return form, {"ia3_l": vector}, None
        vector = np.ones((layer.outputs, 1), np.float32)
        for name, (_, seat) in mine.items():
            vector[seat.outputs, 0] = arrays[f"{name}.scale_out"]
        return form, {"ia3_l": vector}, None
    pairs = {name: (in_theirs(arrays[f"{name}.lora_a"].T, seat.inputs), arrays[f"{name}.lora_b"].T) for name, (_, seat) in mine.items()}
    common = pairs[first][0]
    is_shared = len(mine) == len(layer.parts) and all(
        np.array_equal(a, common) and forms[name].scale == form.scale for name, (a, _) in pairs.items()
    )
    ranks = None if is_shared else [forms[name].rank if name in forms else 0 for name in layer.parts]
    rank = form.rank if ranks is None else sum(ranks)
    b = np.zeros((layer.outputs, rank), np.float32)
    start = 0
    for name, (own, seat) in mine.items():
        columns = slice(None) if is_shared else slice(start, start + own.rank)
        start += own.rank
        ratio = own.scale / form.scale
        b[seat.outputs, columns] = pairs[name][1] if ratio == 1 else pairs[name][1] * np.float32(ratio)
    out = {"lora_A.weight": common if is_shared else np.concatenate([a for a, _ in pairs.values()]), "lora_B.weight": b}
    if form.magnitude:
        out["lora_magnitude_vector"] = np.empty((layer.outputs,), np.float32)
        for name, (_, seat) in mine.items():
            out["lora_magnitude_vector"][seat.outputs] = arrays[f"{name}.magnitude"]
    alpha = form.alpha if rank == form.rank else form.scale * (math.sqrt(rank) if form.rslora else rank)
    return Form(rank=rank, alpha=alpha, rslora=form.rslora, magnitude=form.magnitude), out, ranks


def in_theirs(rows: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """[R, I] in our order of inputs -> in that of transformers."""
    out = np.empty_like(rows)
    out[:, inputs] = rows
    return out


def module_of(table: Table, prefix: str, name: str) -> str:
    """The module of transformers that holds a parameter; of a head the topmost, which peft saves by itself for a classifier."""
    tensor = table.place(name).tensor
    return tensor.partition(".")[0] if name.startswith("head.") else prefix + tensor.rpartition(".")[0]


def whole_modules(table: Table, prefix: str, saved: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of modules that are saved whole."""
    heads = {table.place(name).tensor for name in saved if name.startswith("head.")}
    return {name if name in heads else prefix + name: tensor for name, tensor in table.export(saved)}


def config_of(
    adapted: Mapping[str, Form],
    there: Mapping[str, Dense | None],
    dropout: float,
    task_type: str | None,
    reference: str,
    modules: Sequence[str],
) -> dict[str, Any]:
    """adapter_config.json."""
    form = next(iter(adapted.values()))
    common = {
        "base_model_name_or_path": reference,
        "fan_in_fan_out": any(layer is not None and layer.transposed for name, layer in there.items() if name in adapted),
        "inference_mode": True,
        "modules_to_save": list(modules) or None,
        "target_modules": short_names(adapted, there),
        "task_type": task_type,
    }
    if not form.rank:
        return {**common, "peft_type": "IA3", "feedforward_modules": [name for name, own in adapted.items() if own.scale_in]} | (
            {"target_modules": sorted(adapted)}  # feedforward_modules must be among them, name for name
        )
    rank = Counter(own.rank for own in adapted.values()).most_common(1)[0][0]
    alpha = Counter(own.alpha for own in adapted.values()).most_common(1)[0][0]
    return {
        **common,
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": whole_number(alpha),
        "rank_pattern": {name: own.rank for name, own in adapted.items() if own.rank != rank},
        "alpha_pattern": {name: whole_number(own.alpha) for name, own in adapted.items() if own.alpha != alpha},
        "lora_dropout": dropout,
        "use_rslora": form.rslora,
        "use_dora": form.magnitude,
        "bias": "none",
    }


def whole_number(value: float) -> float:
    return int(value) if value == int(value) else value


def short_names(adapted: Mapping[str, Form], there: Mapping[str, Dense | None]) -> list[str]:
    """Last words ("q_proj") where every layer with that name is adapted, whole names elsewhere."""
    others = {name.rpartition(".")[2] for name in there if name not in adapted}
    return sorted({name if (last := name.rpartition(".")[2]) in others else last for name in adapted})
