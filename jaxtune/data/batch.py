"""The keys a batch may hold, with axes, dtype and meaning, stated once; and the functions that make a batch of single rows.

A batch is a plain dict of arrays, so that any model, loss or sharding rule takes it as it is. Rows that only fill up the
last batch carry loss weight 0 and example number -1: they count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtune.core.errors import ConfigError, DataError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One key of a batch."""

    axes: str  # letters of core/shapes.py
    dtype: str
    pad: int
    meaning: str

    @property
    def ragged(self) -> bool:
        """Whether a single row has its own length, padded to the width of the batch."""
        return "T" in self.axes.split()


FIELDS: dict[str, Field] = {
    "tokens": Field("B T", "int32", 0, "token numbers of the tokenizer; what stands beyond the real tokens is never looked at"),
    "segment_ids": Field("B T", "int32", 0, "0 where padded, 1 for the first text of the row, 2.. for further ones packed behind it"),
    "token_types": Field("B T", "int32", 0, "0 for the first text of a pair, 1 for the second"),
    "positions": Field("B T", "int32", 0, "position inside the segment, from 0; only in packed rows"),
    "token_weight": Field(
        "B T", "float32", 0, "weight of a token as a target, predicted from those before it; 0 for prompts and a segment's first token"
    ),
    "image": Field("B Y X C", "float32", 0, "channels last; uint8 until it is normalised on the device"),
    "label": Field("B", "int32", 0, "class number"),
    "target": Field("B C", "float32", 0, "one number per output: several labels, regression or soft labels"),
    "reference": Field(
        "B C", "float32", 0, "what the model said of an example before training: the log-probabilities of both answers of a pair"
    ),
    "teacher_tokens": Field("B T J", "int32", 0, "the tokens that a teacher holds likeliest at this place, given those before it"),
    "teacher_log_probability": Field("B T J", "float32", 0, "log-probability of each of them by the teacher; 0 where no loss is"),
    "loss_weight": Field("B", "float32", 0, "weight in loss and metrics; 0 in rows that only fill up the batch"),
    "example_id": Field("B", "int32", -1, "row number in the whole data set; -1 in rows that only fill up the batch"),
}


def complete(fields: Iterable[str]) -> tuple[str, ...]:
    """The keys of a batch whose rows hold `fields`: those that collation adds come with them. In the order of FIELDS.

    Raises:
        KeyError: a name that is not a field.
    """
    names = {"loss_weight", "example_id"}
    for name in fields:
        FIELDS[name]
        names.add(name)
    if "tokens" in names:
        names.add("segment_ids")
    return tuple(name for name in FIELDS if name in names)


def spec(
    fields: Iterable[str],
    rows: int,
    width: int | None = None,
    *,
    image: tuple[int, int, int] | None = None,
    image_dtype: str = "uint8",
    classes: int | None = None,
    candidates: int | None = None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch of `rows`, to compile and plan without data.

    `width` is T of token fields, `image` is (Y, X, channels), `classes` the C of "target" and "reference", `candidates` the J of a teacher.
    """
    sizes = {"B": (rows,), "B T": (rows, width), "B Y X C": (rows, *(image or (None,))), "B C": (rows, classes)}
    sizes["B T J"] = (rows, width, candidates)
    out = {}
    for name in complete(fields):
        shape = sizes[FIELDS[name].axes]
        if None in shape:
            raise ValueError(f'the shape of "{name}" [{FIELDS[name].axes}] needs the argument width, image, classes or candidates')
        out[name] = jax.ShapeDtypeStruct(shape, np.dtype(image_dtype if name == "image" else FIELDS[name].dtype))
    return out


def collate(rows: Sequence[Row | None], width: int | None, template: Row | None = None) -> dict[str, np.ndarray]:
    """One batch of numpy arrays; None makes a padded row.

    `width` is T for rows with tokens, else None. `template` is a row that shows fields and shapes, needed only when
    every row is None (a host whose whole share of the last batch is padding).

    Raises:
        DataError: a row has more tokens than `width`, or another shape than the others.
    """
    shown = next((row for row in rows if row is not None), template)
    if shown is None:
        raise ValueError("a batch without any row needs a template")
    out = {name: _column(name, rows, width, shown) for name in complete(shown) if name in shown}
    _check_alike(rows)
    real = np.array([row is not None for row in rows])
    if "tokens" in shown and "segment_ids" not in shown and width is not None:
        lengths = np.array([0 if row is None else len(row["tokens"]) for row in rows])
        out["segment_ids"] = (np.arange(width)[None, :] < lengths[:, None]).astype(np.int32)
    if "loss_weight" not in shown:
        out["loss_weight"] = real.astype(np.float32)
    return {name: out[name] for name in FIELDS if name in out}


def _check_alike(rows: Sequence[Row | None]) -> None:
    """Raises:
    DataError: in a row, what goes with the tokens is not as long as they are.
    """
    for number, row in enumerate(rows):
        lengths = {} if row is None else {name: len(value) for name, value in row.items() if FIELDS[name].ragged}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"row {row.get('example_id', number) if row else number}: expected one value per token, found {found}")


def join(rows: Sequence[Row]) -> Row:
    """Several rows behind each other as one, each with its own segment number and positions; the first one's example number.

    Raises:
        ConfigError: the rows hold something that there is only one of in a row of a batch.
    """
    single = [name for name in rows[0] if not FIELDS[name].ragged and name != "example_id"]
    if single:
        raise ConfigError(
            f"packing: an example has its own {', '.join(single)}, and a packed row holds several examples; use packing: none"
        )
    lengths = [len(row["tokens"]) for row in rows]
    return {
        **{name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in rows[0] if name != "example_id"},
        "segment_ids": np.repeat(np.arange(1, len(rows) + 1, dtype=np.int32), lengths),
        "positions": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        "example_id": rows[0]["example_id"],
    }


def _column(name: str, rows: Sequence[Row | None], width: int | None, shown: Row) -> np.ndarray:
    field = FIELDS[name]
    first = np.asarray(shown[name])
    shape: tuple[int, ...] = first.shape
    if field.ragged:
        if width is None:
            raise ValueError(f'rows with "{name}" need a width')
        shape = (width, *first.shape[1:])
    dtype = first.dtype if name == "image" and first.dtype == np.uint8 else np.dtype(field.dtype)
    out = np.full((len(rows), *shape), field.pad, dtype)
    for number, row in enumerate(rows):
        if row is None:
            continue
        value = np.asarray(row[name])
        fits = value.shape[1:] == shape[1:] and value.ndim > 0 and len(value) <= shape[0] if field.ragged else value.shape == shape
        if not fits:
            expected = f"at most {width} tokens" if field.ragged else f"the shape {shape} of the other rows"
            raise DataError(f'row {row.get("example_id", number)}: "{name}" has the shape {value.shape}, expected {expected}')
        if field.ragged:
            out[number, : len(value)] = value
        else:
            out[number] = value
    return out
