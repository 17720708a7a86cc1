"""Adapters in the format of Hugging Face's `peft`: a folder with adapter_config.json and adapter_model.safetensors, read here and
written by `peft_write.py`.

Numbers go over bit for bit. Where transformers has one dense layer for several of ours (GPT-2's c_attn, Phi-3's qkv_proj), the adapter of
the fused layer stacks ours along the rank: A holds their rows one below the other and B their blocks on a diagonal, which computes the same.
Read back, each part takes its own rank again (the file's metadata remembers it); a foreign adapter of a fused layer gives every part the
whole A and its own rows of B.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from jaxtune.config.locate import locate
from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.layers.linear import Form
from jaxtune.models.adapters import Attachment, LowRank, Sizes
from jaxtune.models.family import words
from jaxtune.models.fused import Dense, dense
from jaxtune.models.hub import download
from jaxtune.models.load import Base
from jaxtune.models.weights import Table, kernel_beside

START = "base_model.model."
FILES = ("adapter_config.json", "adapter_model.safetensors")
RANKS = "jaxtune_ranks"  # metadata of the tensor file: fused layer -> rank of each part
# Settings of adapter_config.json that change nothing once the adapter is trained, and those that are read.
NEUTRAL = words(
    """auto_mapping base_model_name_or_path inference_mode revision task_type target_modules exclude_modules layers_to_transform
    layers_pattern fan_in_fan_out lora_dropout feedforward_modules init_ia3_weights megatron_core qalora_group_size runtime_config
    peft_version modules_to_save"""
)
HANDLED = words("peft_type r lora_alpha rank_pattern alpha_pattern use_rslora use_dora bias init_lora_weights")
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others change the base's weights as well


class Peft(LowRank):
    """An adapter that was trained before, here or with `peft`; it goes on from its numbers."""

    path: str = Field(description="folder or hub id with adapter_config.json and adapter_model.safetensors")

    def open(self, base: Base, has_head: bool) -> Attachment:
        folder = PeftFolder.open(locate(self.path, "model.adapter.path", download), base, has_head)
        if self.dropout and folder.config["peft_type"] == "IA3":
            raise ConfigError("model.adapter.dropout: has no effect on IA3; leave it out")
        return folder


@dataclass(frozen=True)
class PeftFolder:
    """A folder that was opened; how it fits the model shows when its forms are asked for."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    ranks: Mapping[str, list[int]]
    table: Table = field(repr=False)
    prefix: str
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what `read` found before, by sizes

    @classmethod
    def open(cls, folder: Path, base: Base, has_head: bool) -> PeftFolder:
        """
        Raises:
            ModelError: files are missing or damaged, or the adapter is of a kind or has settings that are not supported (all of them).
        """
        from safetensors import SafetensorError, safe_open

        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            pickled = "; adapter_model.bin is a pickle file, which can run code: save it with peft as safetensors"
            raise ModelError(f"{folder}: no {' and no '.join(missing)}{pickled if (folder / 'adapter_model.bin').is_file() else ''}")
        try:
            config = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
            with safe_open(folder / FILES[1], framework="numpy") as handle:
                tensors = {name: handle.get_tensor(name).astype(np.float32) for name in handle.keys()}  # noqa: SIM118  no mapping
                ranks = json.loads((handle.metadata() or {}).get(RANKS, "{}"))
        except (ValueError, SafetensorError) as error:
            raise ModelError(f"{folder}: damaged ({error}); save the adapter again") from error
        problems = [f"{folder / FILES[0]}: {problem}" for problem in unsupported(config)]
        problems += [
            f"{folder}: tensor {name} holds values that are not finite" for name, value in tensors.items() if not np.isfinite(value).all()
        ]
        if problems:
            raise ModelError(problems)
        return cls(folder, config, tensors, ranks, Table(base.family.rows()), base.family.prefix if has_head else "")

    def forms(self, linears: Sizes) -> dict[str, Form]:
        return {name: form for name, (form, _) in self.read(linears).items()}

    def numbers(self, linears: Sizes, params: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """
        Raises:
            ModelError: tensors of the folder belong to no layer or parameter of the model (all of them).
        """
        found = {f"{name}.{part}": value for name, (_, parts) in self.read(linears).items() for part, value in parts.items()}
        left = {name.removeprefix(START): value for name, value in self.tensors.items() if name not in self.used(linears)}
        whole: set[str] = set()  # tensors of modules that were trained and saved whole, such as a new head
        for name, shape in params.items():
            if kernel_beside(name):
                continue
            place = self.table.place(name)
            tensor = place.tensor if name.startswith("head.") else self.prefix + place.tensor
            if tensor in left and len(place.tensors) == 1 and place.row.fits(left[tensor].shape, shape, place.part):
                found[name] = place.row.to_ours([left[tensor]], shape, place.part)
                whole.add(tensor)
        if strange := sorted(left.keys() - whole):
            raise ModelError(
                [f"{self.folder}: tensor {START}{name} {list(left[name].shape)} fits nothing in this model" for name in strange]
            )
        return found

    def used(self, linears: Sizes) -> set[str]:
        """The tensors that adapt dense layers."""
        ends = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")
        return {
            name for module in dense(self.table, linears, self.prefix) for end in ends if (name := f"{START}{module}.{end}") in self.tensors
        }

    def read(self, linears: Sizes) -> dict[str, tuple[Form, dict[str, np.ndarray]]]:
        """Form and numbers of every adapted layer by per-layer path.

        Raises:
            ModelError: a tensor has another shape than the model's layer wants (all such tensors).
        """
        key = tuple(linears.items())
        if key in self.known:
            return self.known[key]
        out: dict[str, tuple[Form, dict[str, np.ndarray]]] = {}
        problems: list[str] = []
        for module, there in dense(self.table, linears, self.prefix).items():
            mine = {
                name.removeprefix(f"{START}{module}."): value
                for name, value in self.tensors.items()
                if name.startswith(f"{START}{module}.")
            }
            if not mine.keys() & {"lora_A.weight", "lora_B.weight", "ia3_l"}:
                continue
            if there is None:
                problems.append(f"{module}: its matrix is not one of dense layers of this model; leave it out of the adapter")
                continue
            try:
                out.update(self.low_rank(there, mine) if "ia3_l" not in mine else self.scaled(there, mine["ia3_l"]))
            except ModelError as error:
                problems += error.problems
        if problems:
            raise ModelError([f"{self.folder}: {problem}" for problem in problems])
        if not out:
            raise ModelError(
                f"{self.folder}: none of its {len(self.tensors)} tensors belongs to a dense layer of this model; found e.g. {next(iter(self.tensors), 'none')}"
            )
        self.known[key] = out
        return out

    def low_rank(self, there: Dense, mine: Mapping[str, np.ndarray]) -> Iterator[tuple[str, tuple[Form, dict[str, np.ndarray]]]]:
        config = self.config
        wanted = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if config.get("use_dora") else set())
        if mine.keys() != wanted:
            raise ModelError(f"{there.name}: found {', '.join(sorted(mine))}; expected {', '.join(sorted(wanted))}")
        a, b, lengths = mine["lora_A.weight"], mine["lora_B.weight"], mine.get("lora_magnitude_vector")
        rank = len(a)
        shapes = [a.shape == (rank, there.inputs), b.shape == (there.outputs, rank), lengths is None or lengths.shape == (there.outputs,)]
        if not all(shapes):
            raise ModelError(
                f"{there.name}: A {list(a.shape)} and B {list(b.shape)} do not fit a layer of {there.inputs} inputs and {there.outputs} outputs"
            )
        declared = by_pattern(config.get("rank_pattern"), there.name, config["r"])
        if declared != rank:
            raise ModelError(f"{there.name}: A has rank {rank}, adapter_config.json says {declared}")
        alpha, rslora = float(by_pattern(config.get("alpha_pattern"), there.name, config["lora_alpha"])), bool(config.get("use_rslora"))
        scale = Form(rank=rank, alpha=alpha, rslora=rslora).scale
        ranks = self.ranks.get(there.name)
        start = 0
        for number, (name, seat) in enumerate(there.parts.items()):
            own, columns = rank, slice(None)
            if ranks is not None:
                own, columns = ranks[number], slice(start, start + ranks[number])
                start += own
            if not own:
                continue
            own_alpha = alpha if own == rank else scale * (math.sqrt(own) if rslora else own)
            parts = {"lora_a": a[columns][:, seat.inputs].T, "lora_b": b[seat.outputs][:, columns].T}
            if lengths is not None:
                parts["magnitude"] = lengths[seat.outputs]
            yield name, (Form(rank=own, alpha=own_alpha, rslora=rslora, magnitude=lengths is not None), parts)

    def scaled(self, there: Dense, vector: np.ndarray) -> Iterator[tuple[str, tuple[Form, dict[str, np.ndarray]]]]:
        named = self.config.get("feedforward_modules") or ()
        of_inputs = bool(re.fullmatch(named, there.name)) if isinstance(named, str) else any(there.name.endswith(end) for end in named)
        expected = (1, there.inputs) if of_inputs else (there.outputs, 1)
        if vector.shape != expected:
            raise ModelError(f"{there.name}: ia3_l {list(vector.shape)} is not {list(expected)}")
        for name, seat in there.parts.items():
            picked = vector.reshape(-1)[seat.inputs if of_inputs else seat.outputs]
            yield name, (Form(scale_in=of_inputs, scale_out=not of_inputs), {"scale_in" if of_inputs else "scale_out": picked})


def unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """What of an adapter_config.json would change the computation in a way that is not implemented here."""
    kind = config.get("peft_type")
    if kind not in ("LORA", "IA3"):
        yield f"peft_type {kind!r} is not supported (known: LORA, with or without use_dora and use_rslora, and IA3)"
    if kind == "LORA":
        yield from (f'"{name}" is missing' for name in ("r", "lora_alpha") if not isinstance(config.get(name), int | float))
    if config.get("bias", "none") != "none":
        yield f"bias {config['bias']!r} is not supported; expected 'none'"
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        yield f"init_lora_weights {start!r} changes the base's weights too; convert the adapter with peft (path_initial_model_for_weight_conversion)"
    yield from (f"{key}={value!r} is not supported" for key, value in config.items() if key not in NEUTRAL | HANDLED and value)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value for a module: as peft looks it up, the first pattern that is its name or the end of it after a dot."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)
