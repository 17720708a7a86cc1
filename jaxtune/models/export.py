"""From parameters to a Hugging Face folder that `transformers` loads: the weight table read backwards.

Tensors that were never trained are copied from the base files, so they stay bit-equal whatever precision the run computed in.
The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.layers import stack
from jaxtune.models.load import Base
from jaxtune.models.weights import Table

SHARD_BYTES = 5 * 2**30
# Files beside the weights that make a folder usable: tokenizer and image processor.
COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json",
    "sentencepiece.bpe.model", "spiece.model", "preprocessor_config.json", "processor_config.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip


def export(
    folder: Path,
    base: Base,
    values: Mapping[str, jax.Array],
    *,
    trained: frozenset[str] | None = None,
    labels: Sequence[str] = (),
    problem: str | None = None,
    language: bool = False,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes config.json, model.safetensors, tokenizer or image processor files and a model card.

    Args:
        values: stored path -> array, for every variable of the model.
        trained: per-layer names that may differ from the base; None means all. The others are copied from the base files.
        labels: class names for id2label; without any the config keeps its own.
        problem: transformers' problem_type.
        language: whether the model has its language head, which shows in no variable where it is tied.
        files: name -> text of further files, such as the model card; they win over the base's.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    with whole_folder(folder) as partial:
        tensors = gather(base, values, trained, language)
        write_tensors(partial, tensors)
        config = config_json(base, labels, problem, values, language)
        store_dtype(config, tensors)
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name in COMPANIONS:
            if base.folder is not None and (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, partial / name)
        for name, text in (files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `folder` when all of it is there.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: exists and is not empty; nothing was written. Choose another folder with -o")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)


def gather(base: Base, values: Mapping[str, jax.Array], trained: frozenset[str] | None, language: bool = False) -> dict[str, np.ndarray]:
    """Hugging Face tensors on the host, named as a model with (or without) a head names them."""
    table = Table(base.family.rows())
    checkpoint = base.checkpoint
    has_head = language or any(key.startswith("head.") for key in values)
    stored_prefix = ""
    if checkpoint is not None and any(name.startswith(base.family.prefix) for name in checkpoint.tensors):
        stored_prefix = base.family.prefix
    prefix = base.family.prefix if has_head else (stored_prefix if checkpoint is not None else "")
    touched = None if trained is None else {table.place(name).tensor for name in trained}
    arrays: dict[str, np.ndarray] = {}
    copied: dict[str, np.ndarray] = {}
    for key, value in values.items():
        host: np.ndarray | None = None
        for row, name in enumerate(stack.names(key)):
            place = table.place(name)
            is_head = name.startswith("head.")
            stored = {tensor: tensor if is_head else stored_prefix + tensor for tensor in place.tensors}
            if checkpoint is not None and trained is not None and name not in trained and stored[place.tensor] in checkpoint.tensors:
                if touched is not None and place.tensor in touched:  # fused with one that was trained
                    shape = value.shape[1:] if stack.is_stacked(key) else value.shape
                    own = place.row.to_ours([checkpoint.read(tensor) for tensor in stored.values()], shape, place.part)
                    arrays[name] = own.astype(np.float32)
                else:
                    copied |= {tensor if is_head else prefix + tensor: checkpoint.read(source) for tensor, source in stored.items()}
                continue
            if host is None:
                host = np.asarray(jax.device_get(value))
                if host.dtype.kind not in "iu":
                    host = host.astype(np.float32)
            arrays[name] = host[row] if stack.is_stacked(key) else host
    heads = {table.place(name).tensor for name in arrays if name.startswith("head.")}
    made = {name if name in heads else prefix + name: tensor for name, tensor in table.export(arrays)}
    tensors = {**copied, **made}
    for name, tensor in base.family.buffers(tensors).items():
        stored_name = stored_prefix + name.removeprefix(prefix)
        tensors[name] = checkpoint.read(stored_name) if checkpoint is not None and stored_name in checkpoint.tensors else tensor
    return dict(sorted(tensors.items()))


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One file, or shards with an index above 5 GiB."""
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    index: dict[str, Any] = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def config_json(
    base: Base, labels: Sequence[str], problem: str | None, values: Mapping[str, jax.Array], language: bool = False
) -> dict[str, Any]:
    """config.json of the result: the base's own, with the head's architecture and labels."""
    source = base.checkpoint.config if base.checkpoint is not None else base.family.raw
    config = {**source, "model_type": base.family.model_type}
    if language:
        config["architectures"] = [base.family.language_architecture]
    elif any(key.startswith("head.") for key in values):
        config["architectures"] = [base.family.architecture]
        outputs = values["head.out.kernel"].shape[-1]
        known = len(config.get("id2label") or (0, 1))  # transformers leaves two unnamed classes out
        if not labels and outputs != known:
            labels = [f"LABEL_{number}" for number in range(outputs)]
    if labels:
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
    if problem:
        config["problem_type"] = problem
    return config


def store_dtype(config: dict[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """transformers loads in the precision that config.json names, so a half-precision base must not round what was trained since."""
    named = config.get("dtype", config.get("torch_dtype"))
    if named not in (None, "float32") and any(tensor.dtype == np.float32 for tensor in tensors.values()):
        config.pop("torch_dtype", None)
        config["dtype"] = "float32"
