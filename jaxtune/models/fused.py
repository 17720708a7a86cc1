"""How transformers' dense layers are made of ours: which rows and columns of its matrix a kernel of ours is.

Found by sending the numbers of rows and columns through the weight table's own layouts, so that fused layers (GPT-2's c_attn, Phi-3's
qkv_proj, NeoX's heads that alternate) and transposed ones need no knowledge of any family here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxtune.models.adapters import Sizes
from jaxtune.models.weights import Table, Weight


@dataclass(frozen=True)
class Seat:
    """Which inputs and outputs of a Hugging Face matrix a kernel [I, O] of ours is."""

    inputs: np.ndarray = field(repr=False)  # [I]
    outputs: np.ndarray = field(repr=False)  # [O]
    transposed: bool  # the matrix is [inputs, outputs], as GPT-2 keeps it


@dataclass(frozen=True)
class Dense:
    """A dense layer as transformers has it, and ours that it is made of, in their order."""

    name: str
    parts: Mapping[str, Seat]
    inputs: int
    outputs: int

    @property
    def transposed(self) -> bool:
        return next(iter(self.parts.values())).transposed


def dense(table: Table, linears: Sizes, prefix: str) -> dict[str, Dense | None]:
    """Every dense layer by transformers' name; None where its matrix mixes inputs and outputs or holds more than dense layers."""
    groups: dict[str, dict[int, str]] = {}
    rows: dict[str, Weight] = {}
    for name in linears:
        place = table.place(f"{name}.kernel")
        tensor = place.tensor if name.startswith("head.") else prefix + place.tensor
        groups.setdefault(tensor.removesuffix(".weight"), {})[place.part] = name
        rows[tensor.removesuffix(".weight")] = place.row
    return {module: seated(module, rows[module], dict(sorted(parts.items())), linears) for module, parts in groups.items()}


def seated(module: str, row: Weight, parts: Mapping[int, str], linears: Sizes) -> Dense | None:
    if len(parts) != len(row.paths) or row.many:
        return None
    seats, shape = seats_of(row, tuple(linears[name] for name in parts.values()))
    if seats is None:
        return None
    inputs, outputs = shape if seats[0].transposed else shape[::-1]
    return Dense(module, dict(zip(parts.values(), seats, strict=True)), inputs, outputs)


@functools.lru_cache(maxsize=256)
def seats_of(row: Weight, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[Seat, ...] | None, tuple[int, ...]]:
    """The seats of a row's kernels of these sizes, found by sending the numbers of rows and columns through the layout."""
    (matrix,) = row.to_hf([np.broadcast_to(np.int8(0), size) for size in sizes])
    if matrix.ndim != 2:
        return None, matrix.shape
    seats = []
    for part, size in enumerate(sizes):
        numbers = (
            np.broadcast_to(np.arange(n, dtype=np.int32).reshape((-1, 1) if axis == 0 else (1, -1)), matrix.shape)
            for axis, n in enumerate(matrix.shape)
        )
        first, second = (row.to_ours([number], size, part) for number in numbers)
        for inputs, outputs, transposed in ((second, first, False), (first, second, True)):
            if (inputs == inputs[:, :1]).all() and (outputs == outputs[:1]).all():
                seats.append(Seat(inputs[:, 0].copy(), outputs[0].copy(), transposed))
                break
        else:
            return None, matrix.shape
    return tuple(seats), matrix.shape
