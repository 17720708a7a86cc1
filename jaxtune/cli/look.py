"""A look at unknown data: which source reads it, what is the text, what is the label, how long the texts are.

A sample spread over all rows is looked at through the same sources that training uses, so what is read here is what trains.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic_core import PydanticCustomError

from jaxtune.cli.columns import SPLIT_WORDS, Problem, classes, find_group, find_label, find_problem, find_split, find_text, words
from jaxtune.cli.forms import Form, find_form
from jaxtune.config.locate import locate
from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.data import SOURCES
from jaxtune.data.sources.base import Records

SAMPLE = 3000
IMAGE_SAMPLE = 200
_TABLES = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json_lines"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Look:
    """What was seen."""

    source: dict[str, Any]  # settings of the source, with its kind
    rows: int
    seen: int  # rows that were looked at
    domain: Literal["text", "image"]
    label: str = ""
    problem: Problem | None = None  # None where nothing is labelled
    classes: dict[str, int] = field(default_factory=dict)  # in the rows that were looked at, most frequent first
    text: str = ""
    pair: str | None = None
    words: dict[int, int] = field(default_factory=dict)  # percent of the texts -> at most so many words
    split: dict[str, str] | None = None  # value of the split column -> split
    split_column: str | None = None
    group: str | None = None
    image_size: tuple[int, int] = (0, 0)  # median height and width
    channels: int = 3
    form: Form | None = None  # of what a language model learns from


def look(reference: str, text: str | None = None, label: str | None = None, task: str | None = None) -> Look:
    """Opens the data and judges a sample; columns and task are found where they are not said.

    Raises:
        ConfigError: nothing there, no known kind of data, or no column that can be text or label.
        DataError: the data cannot be read as what they look like.
    """
    source = find_source(reference)
    records = _open(source)
    if source["kind"] == "image_folder":
        return _look_at_images(source, records)
    rows = _spread(len(records), SAMPLE)
    columns = {name: [] for name in records.fields}
    for row in rows:
        record = records[row]
        for name, values in columns.items():
            values.append(record.get(name))
    can_split = "split" not in source.get("path", ())
    if label is None and (form := find_form(columns, task, text)) is not None:
        taken: set[str | None] = set(form.columns.values())
        split_column, split = find_split(columns, taken) if can_split else (None, None)
        return Look(
            source=source, rows=len(records), seen=len(rows), domain="text", split=split, split_column=split_column,
            group=find_group(columns, {*taken, split_column}), form=form,
        )  # fmt: skip
    chosen_text, pair = find_text(columns, text)
    chosen_label = find_label(columns, {chosen_text, pair}, label)
    problem = find_problem(columns[chosen_label], chosen_label)
    split_column, split = find_split(columns, {chosen_text, pair, chosen_label}) if can_split else (None, None)
    lengths = [words(a) + (words(b) if pair else 0) for a, b in zip(columns[chosen_text], columns[pair or chosen_text], strict=True)]
    return Look(
        source=source,
        rows=len(records),
        seen=len(rows),
        domain="text",
        label=chosen_label,
        problem=problem,
        classes=classes(columns[chosen_label], problem),
        text=chosen_text,
        pair=pair,
        words={percent: int(np.percentile(lengths, percent)) for percent in (50, 98, 100)},
        split=split,
        split_column=split_column,
        group=find_group(columns, {chosen_text, pair, chosen_label, split_column}),
    )


def find_source(reference: str) -> dict[str, Any]:
    """The settings of the source that reads what lies at `reference`.

    Raises:
        ConfigError: it is none of the kinds that `new` knows.
    """
    path = locate(reference, "--data")
    if path.is_file():
        kind = _TABLES.get(path.suffix.lower())
        if kind is None:
            raise ConfigError(f"--data: {path} is no .csv, .tsv, .jsonl or .parquet file, and no folder; write a data.source by hand")
        return {"kind": kind, "path": reference, **(_table_options(path) if kind == "csv" else {})}
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    parts = {SPLIT_WORDS[name.lower()]: f"{reference.rstrip('/')}/{name}" for name in folders if name.lower() in SPLIT_WORDS}
    if "train" in parts and len(parts) > 1:
        return {**_folder_kind(Path(locate(parts["train"]))), "path": {name: parts[name] for name in SPLIT_WORDS.values() if name in parts}}
    return {**_folder_kind(path), "path": reference}


def _folder_kind(path: Path) -> dict[str, Any]:
    files = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
    tables = Counter(_TABLES[file.suffix.lower()] for file in files if file.suffix.lower() in _TABLES)
    below = Counter(file.suffix.lower() for folder in path.iterdir() if folder.is_dir() for file in folder.iterdir() if file.is_file())
    images = sum(below[suffix] for suffix in _IMAGES)
    if images and images >= below[".txt"]:
        return {"kind": "image_folder"}
    if below[".txt"]:
        texts = sorted(file for folder in path.iterdir() if folder.is_dir() for file in folder.rglob("*.txt"))
        encodings = [_encoding(texts[row].read_bytes()) for row in _spread(len(texts), SAMPLE)]
        return {"kind": "text_folder", **max(encodings, key=len)}
    if tables:
        kind = tables.most_common(1)[0][0]
        first = min(file for file in files if _TABLES.get(file.suffix.lower()) == kind)
        return {"kind": kind, **(_table_options(first) if kind == "csv" else {})}
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    raise ConfigError(f"--data: {path} holds {held}; expected a folder per class with .txt or image files, or .csv, .jsonl, .parquet files")


def _table_options(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(1 << 18)
    sample = raw.decode("utf-8", "replace")
    options = _encoding(raw)
    try:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else csv.Sniffer().sniff(sample, ",;\t|").delimiter
    except csv.Error:
        delimiter = max(",;\t|", key=sample.split("\n")[0].count)
    return options if delimiter == "," else {"delimiter": delimiter, **options}


def _encoding(raw: bytes) -> dict[str, Any]:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":  # else only the sample ends inside a character
            return {"encoding": ["utf-8", "cp1252"]}
    return {}


def _open(source: Mapping[str, Any]) -> Records:
    try:
        made: Any = OneOf(SOURCES).load(dict(source))
    except PydanticCustomError as error:
        raise ConfigError(error.message()) from error
    return made.open()


def _spread(count: int, wanted: int) -> list[int]:
    return sorted({int(row) for row in np.linspace(0, count - 1, min(count, wanted))})


def _look_at_images(source: dict[str, Any], records: Records) -> Look:
    rows = _spread(len(records), IMAGE_SAMPLE)
    images = [records[row]["image"] for row in rows]
    grey = all(image.shape[2] == 1 or (image[..., :1] == image).all() for image in images)
    height, width = (int(np.median([image.shape[axis] for image in images])) for axis in (0, 1))
    names: Any = getattr(records, "names", None)
    labels = [name.partition("/")[0] for name in names] if names else [records[row]["label"] for row in rows]
    return Look(
        source={**source, "channels": 1} if grey else source,
        rows=len(records),
        seen=len(rows),
        domain="image",
        label="label",
        problem="single_label",
        classes=dict(Counter(labels).most_common()),
        image_size=(height, width),
        channels=1 if grey else 3,
    )
