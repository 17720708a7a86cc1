"""The door to Hugging Face checkpoints: a folder's config.json, its tensors (safetensors only) and its licence.

Nothing is unpickled, no code of a checkpoint runs, shard names may not leave the folder, and every tensor is opened lazily.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import ModelError, UnsafeInputError

_SHARD = re.compile(r"[\w.\-]+\.safetensors\Z")
_RENAMED = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies and what it is."""

    file: Path
    stored_name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model folder, opened without reading the tensors."""

    folder: Path
    config: Mapping[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads config.json and the headers of all shards.

        Raises:
            ModelError: no config.json, no safetensors, or a damaged shard.
            UnsafeInputError: the index names a file outside the folder.
        """
        path = folder / "config.json"
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
            raise ModelError(f"{folder}: no config.json (found: {there}); expected a Hugging Face model folder")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path}: not valid JSON ({error})") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise ModelError(f'{path}: no "model_type"; expected the config.json of a transformers model')
        return cls(folder, config)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by its (modern) name."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, TensorInfo] = {}
        for file in self._shards():
            try:
                with safe_open(file, framework="numpy") as handle:
                    for name in handle.keys():  # noqa: SIM118  a safetensors handle is not a mapping
                        part = handle.get_slice(name)
                        modern = name
                        for old, new in _RENAMED:
                            modern = modern.replace(old, new)
                        if modern in found:
                            raise ModelError(f"{file}: tensor {name} is also in {found[modern].file.name}")
                        found[modern] = TensorInfo(file, name, tuple(part.get_shape()), part.get_dtype())
            except SafetensorError as error:
                raise ModelError(f"{file}: damaged safetensors file ({error}); download or export it again") from error
        return found

    def _shards(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"{index}: damaged ({error!r}); expected an object with a weight_map from tensors to files") from error
        else:
            names = sorted(p.name for p in self.folder.glob("*.safetensors"))
            if "model.safetensors" in names:
                names = ["model.safetensors"]
        if not names:
            pickled = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in self.folder.glob(suffix))
            hint = (
                f" {pickled[0]} is a pickle file, which can run code: convert it to safetensors with transformers elsewhere."
                if pickled
                else ""
            )
            raise ModelError(f"{self.folder}: no *.safetensors file.{hint} Expected model.safetensors or shards with an index")
        for name in names:
            if not _SHARD.match(name):
                raise UnsafeInputError(f"{index}: shard name {name!r} may not leave the folder; expected a plain *.safetensors file name")
            if not (self.folder / name).is_file():
                raise ModelError(f"{index}: shard {name} is missing from {self.folder}")
        return [self.folder / name for name in names]

    def read(self, name: str) -> np.ndarray:
        """One tensor as a host array in its stored dtype."""
        from safetensors import safe_open

        info = self.tensors[name]
        with safe_open(info.file, framework="numpy") as handle:
            return handle.get_tensor(info.stored_name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over config.json and all shards: a run that saves only what it trained names its base by it."""
        digest = sha256()
        for path in (self.folder / "config.json", *self._shards()):
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    @cached_property
    def licence(self) -> str | None:
        """The licence named in the model card's front matter, or None."""
        card = self.folder / "README.md"
        if not card.is_file():
            return None
        text = card.read_text(encoding="utf-8", errors="replace")
        if not text.startswith("---"):
            return None
        found = re.search(r"^licen[sc]e:\s*(.+?)\s*$", text.split("---", 2)[1], re.MULTILINE)
        return found[1].strip("\"'") if found else None


def download(reference: str) -> Path:
    """Folder of a hub id, from the local cache or the hub; only configs, tokenizers and safetensors are fetched."""
    from huggingface_hub import snapshot_download

    repository, _, revision = reference.partition("@")
    return Path(
        snapshot_download(
            repository, revision=revision or None, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "README.md"]
        )
    )


@dataclass(frozen=True)
class ClassDefaults(Mapping[str, Any]):
    """What transformers' config class for a model type assumes for keys that config.json leaves out; loaded when first asked."""

    model_type: str

    @cached_property
    def values_by_key(self) -> dict[str, Any]:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it warns that PyTorch is missing, which is meant
        from transformers import AutoConfig

        try:
            return AutoConfig.for_model(self.model_type).to_dict()
        except ValueError:  # a family of somebody's own
            return {}

    def __getitem__(self, key: str) -> Any:
        return self.values_by_key[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_key)

    def __len__(self) -> int:
        return len(self.values_by_key)
