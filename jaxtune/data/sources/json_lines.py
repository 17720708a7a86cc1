"""`kind: json_lines`: one JSON object per line.

Every line is parsed once when the source is opened, so a bad line is known before training; after that only the positions
of the lines are kept and records are read from the file by position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import field_validator

from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import (
    DecodingErrors,
    Encodings,
    FileSource,
    Joined,
    Record,
    Records,
    data_files,
    decode,
    encoding_names,
    row_number,
)

SUFFIXES = (".jsonl", ".json", ".ndjson")
NAMED = 10  # bad lines named in one message


class JsonLines(FileSource):
    """Fields: every key that occurs; a record without one has None there."""

    encoding: Encodings = "utf-8"
    errors: DecodingErrors = "strict"

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return encoding_names(value, lines=True)

    def files(self, path: Path) -> list[Path]:
        return data_files(path, SUFFIXES)

    def read(self, path: Path) -> Records:
        files = self.files(path)
        parts = [_scan(file, self.encoding, self.errors) for file in files]
        return parts[0] if len(parts) == 1 else Joined.of(parts, names=files)


@dataclass(frozen=True)
class JsonLineRecords:
    file: Path
    spans: np.ndarray  # i64 [n, 2]: first byte and length of every object's line
    fields: tuple[str, ...]
    encoding: str | tuple[str, ...]
    errors: str

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Record:
        start, length = self.spans[row_number(index, len(self.spans))]
        with self.file.open("rb") as file:
            file.seek(start)
            values = json.loads(decode(file.read(length), self.encoding, self.errors, str(self.file)))
        return {field: values.get(field) for field in self.fields}


def _scan(path: Path, encoding: str | tuple[str, ...], errors: str) -> JsonLineRecords:
    """Positions and fields of all lines.

    Raises:
        DataError: names up to ten lines that are not JSON objects.
    """
    spans: list[tuple[int, int]] = []
    fields: dict[str, None] = {}
    problems: list[str] = []
    start = bad = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                fields.update(dict.fromkeys(_object(raw, encoding, errors, f"{path}, line {number}") or ()))
                if raw.strip():
                    spans.append((start, len(raw)))
            except DataError as error:
                bad += 1
                problems += [str(error)] if len(problems) < NAMED else []
            start += len(raw)
    if problems:
        more = [f"and {bad - NAMED} more lines"] if bad > NAMED else []
        with path.open("rb") as file:
            array = file.read(64).lstrip().startswith(b"[")
        remedy = f"it looks like one JSON list, convert it: jq -c '.[]' {path} > NEW.jsonl" if array else "correct or remove these lines"
        raise DataError("\n".join([*problems, *more]) + f"; expected one JSON object per line; {remedy}")
    if not spans:
        raise DataError(f"{path}: expected one JSON object per line, found no lines")
    return JsonLineRecords(path, np.array(spans, np.int64), tuple(fields), encoding, errors)


def _object(raw: bytes, encoding: str | tuple[str, ...], errors: str, where: str) -> dict[str, Any] | None:
    """The line's object, None for a blank line."""
    text = decode(raw, encoding, errors, where)
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f'{where}: {error.msg.removesuffix(" at")} at column {error.colno} (found "{printable(text)}")') from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply") from error
    if not isinstance(value, dict):
        raise DataError(f'{where}: found {_KINDS.get(type(value), "null")} "{printable(text)}"')
    return value


_KINDS: dict[type, str] = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
