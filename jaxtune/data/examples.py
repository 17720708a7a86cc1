"""Rows ready for a batch, kept by column: arrays, ragged token columns, or objects that make a row when asked (images).

A part of the data (a split, a fold, the kept rows) is a view with row numbers, so every row keeps its number in the whole
data set, from the split to the error analysis. Memory-mapped columns stay so, in views and in worker processes.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError
from jaxtune.data.batch import FIELDS


class Column(Protocol):
    """One value per row: an array, a `Ragged`, or anything with random access. Picklable when worker processes are used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different length in one array: row i is flat[offsets[i]:offsets[i + 1]]."""

    flat: np.ndarray  # [sum of lengths]
    offsets: np.ndarray  # int64[rows + 1]

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: Any = np.int32) -> Ragged:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        parts = [np.asarray(row, dtype) for row in rows]
        return cls(np.concatenate(parts) if parts else np.zeros(0, dtype), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """int32[rows]"""
        return np.diff(np.asarray(self.offsets)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return np.asarray(self.flat)[self.offsets[index] : self.offsets[index + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: _by_path(value) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _opened(value) for name, value in state.items()})


@dataclass(frozen=True, eq=False)
class Examples:
    """Columns named as in `FIELDS`, and which of their rows belong to this view.

    `facts` are arrays per row that never enter a batch (the length before cutting, ...); `lengths` counts the tokens of each
    row of this view and is taken from the tokens when it is not given; `ids` are the row numbers in the whole data set.

    Raises:
        ConfigError: a column that no batch can hold, or columns of different length (all are named).
    """

    columns: Mapping[str, Column]
    lengths: np.ndarray | None = None  # int32[rows]
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    ids: Any = None  # int64[rows]

    def __post_init__(self) -> None:
        allowed = tuple(name for name in FIELDS if name != "example_id")
        problems = [
            f'examples: no batch holds a column "{name}"{nearest(name, allowed)} (possible: {", ".join(allowed)})'
            for name in self.columns
            if name not in allowed
        ]
        counts = {name: len(column) for name, column in {**self.columns, **self.facts}.items()}
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "no column"
            problems.append(f"examples: expected columns with one value per row, found rows: {found}")
        if problems:
            raise ConfigError(problems)
        ids = np.arange(next(iter(counts.values())), dtype=np.int64) if self.ids is None else self.ids
        lengths, tokens = self.lengths, self.columns.get("tokens")
        if lengths is None and isinstance(tokens, Ragged):
            lengths = tokens.lengths[ids]
        if lengths is not None and len(lengths) != len(ids):
            raise ConfigError(f"examples: found {len(lengths)} lengths for {len(ids)} rows; give one per row")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "lengths", lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` of this view: the value of each column and its "example_id". Arrays may be read-only."""
        number = int(self.ids[index])
        return {**{name: column[number] for name, column in self.columns.items()}, "example_id": number}

    def column(self, name: str) -> np.ndarray:
        """An array column, or one of the facts, for the rows of this view."""
        source = self.facts[name] if name in self.facts else self.columns[name]
        if not isinstance(source, np.ndarray):
            raise TypeError(f'column "{name}" is a {type(source).__name__}, not an array; ask for single rows')
        return np.asarray(source)[self.ids]

    def subset(self, rows: np.ndarray | Sequence[int]) -> Examples:
        """A view of some rows of this view, by number or by mask, in the order given. Nothing is copied but row numbers."""
        rows = np.asarray(rows)
        if rows.dtype == bool and len(rows) != len(self):
            raise ValueError(f"a mask of {len(rows)} rows for {len(self)}")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        lengths = None if self.lengths is None else np.asarray(self.lengths)[rows]
        return Examples(self.columns, lengths, self.facts, self.ids[rows])

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "lengths": _by_path(self.lengths)}
        for name in ("columns", "facts"):
            state[name] = {key: _by_path(value) for key, value in state[name].items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["lengths"] = _opened(state["lengths"])
        for name in ("columns", "facts"):
            state[name] = {key: _opened(value) for key, value in state[name].items()}
        self.__dict__.update(state)


@dataclass(frozen=True)
class _Mapped:
    """Where a memory-mapped array lies: what is pickled in its place."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]


def _by_path(value: Any) -> Any:
    """Only a whole map: NumPy gives a slice the offset of the array it was cut from."""
    if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap) and value.filename and value.flags.c_contiguous:
        return _Mapped(str(value.filename), value.dtype, value.offset, value.shape)
    return value


def _opened(value: Any) -> Any:
    return np.memmap(value.path, value.dtype, "r", value.offset, value.shape) if isinstance(value, _Mapped) else value
