"""`kind: csv`: a table as text, by default with comma and a header line.

Every row is parsed once when the source is opened, so bad rows are known before training; after that only the rows' positions
in the file are kept. Values stay text, except in the columns named as numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import Field, field_validator, model_validator

from jaxtune.core.errors import ConfigError, DataError
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
    known_columns,
    row_number,
)

NAMED = 10  # bad rows named in one message


class CsvFile(FileSource):
    """Fields: the columns. Quotes are `"`, doubled inside; a quoted value may hold line ends."""

    delimiter: str = Field(default=",", min_length=1, max_length=1, description='What stands between values: "," or ";" or "\\t".')
    columns: tuple[str, ...] | None = Field(default=None, description="Names of the columns when the file has no header line.")
    numbers: tuple[str, ...] = Field(
        default=(), description="Columns whose values are numbers (an empty value is missing); all others are text."
    )
    encoding: Encodings = "utf-8"
    errors: DecodingErrors = "strict"

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return encoding_names(value, lines=True)

    @model_validator(mode="after")
    def _numbers_named(self) -> CsvFile:
        if self.columns is not None:
            unknown = [name for name in self.numbers if name not in self.columns]
            if unknown:
                raise ValueError(f"numbers names {', '.join(unknown)}, which columns does not (columns: {', '.join(self.columns)})")
        return self

    def files(self, path: Path) -> list[Path]:
        return data_files(path, (".csv", ".tsv", ".txt"))

    def read(self, path: Path) -> Records:
        files = self.files(path)
        parts = [_scan(file, self) for file in files]
        return parts[0] if len(parts) == 1 else Joined.of(parts, names=files)


@dataclass(frozen=True)
class CsvRecords:
    file: Path
    spans: np.ndarray  # i64 [n, 2]: first byte and length of every row
    fields: tuple[str, ...]
    options: CsvFile
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Record:
        start, length = self.spans[row_number(index, len(self.spans))]
        with self.file.open("rb") as file:
            file.seek(start)
            raw = file.read(length)
        text = decode(raw, self.options.encoding, self.options.errors, str(self.file))
        record: Record = dict(zip(self.fields, next(_rows(io.StringIO(text), self.options)), strict=True))
        return record | {name: _number(record[name]) for name in self.options.numbers}


class _Lines(Iterator[str]):
    """The lines of a file as text, counting how far the csv reader has come."""

    def __init__(self, file: BinaryIO, path: Path, options: CsvFile):
        self.file, self.path, self.options = file, path, options
        self.number = self.end = 0  # lines and bytes handed out

    def __next__(self) -> str:
        raw = next(self.file)
        self.number += 1
        self.end += len(raw)
        return decode(raw, self.options.encoding, self.options.errors, f"{self.path}, line {self.number}")


def _rows(lines: Iterable[str], options: CsvFile) -> Any:
    csv.field_size_limit(2**31 - 1)  # the module's limit of 128 KiB is less than a long article, and there is none per reader
    return csv.reader(lines, delimiter=options.delimiter, strict=True)


def _scan(path: Path, options: CsvFile) -> CsvRecords:
    """Positions of all rows.

    Raises:
        ConfigError: `numbers` names a column that is not there.
        DataError: names up to ten rows that do not fit the columns.
    """
    spans: list[tuple[int, int]] = []
    problems: list[str] = []
    bad = 0
    with path.open("rb") as file:
        lines = _Lines(file, path, options)
        reader = _rows(lines, options)
        columns: tuple[str, ...] = options.columns or ()
        while True:
            start, line = lines.end, lines.number + 1
            try:
                row = next(reader)
                if not columns:
                    columns = _header(row, path, options)
                    continue
                problem = _problem(row, columns, options.numbers) if row else ""
            except StopIteration:
                break
            except csv.Error as error:
                row, problem = [], f"{error}; check the quotes"
            if problem:
                bad += 1
                problems += [f"{path}, line {line}: {problem}"] if len(problems) < NAMED else []
            elif row:
                spans.append((start, lines.end - start))
    if problems:
        more = [f"and {bad - NAMED} more rows"] if bad > NAMED else []
        raise DataError("\n".join([*problems, *more]) + "; correct these rows, or set delimiter, columns or numbers to what the file holds")
    if not spans:
        raise DataError(
            f"{path}: expected rows of a table, found {'only a header line' if columns and options.columns is None else 'none'}"
        )
    return CsvRecords(path, np.array(spans, np.int64), columns, options)


def _header(row: list[str], path: Path, options: CsvFile) -> tuple[str, ...]:
    names = tuple(name.strip() for name in row)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if "" in names or doubled:
        raise DataError(
            f"{path}, line 1: expected a header line with different column names, found "
            + (f"{', '.join(doubled)} more than once" if doubled and doubled != [""] else f"an empty name in {printable(names)}")
            + "; correct it, or name the columns with `columns: [...]` when the file has no header line"
        )
    other = (
        next((mark for mark in (";", "\t", "|", ",") if mark != options.delimiter and mark in names[0]), None) if len(names) == 1 else None
    )
    if other:
        raise ConfigError(
            f'{path}: one column named "{printable(names[0])}" with delimiter "{options.delimiter}"; set `delimiter: {other!r}`'
        )
    known_columns(f"{path}, numbers", options.numbers, names)
    return names


def _problem(row: list[str], columns: tuple[str, ...], numbers: tuple[str, ...]) -> str:
    """What is wrong with a row, or an empty string."""
    if len(row) != len(columns):
        return f'expected {len(columns)} values ({", ".join(columns[:8])}), found {len(row)} (first: "{printable(row[0])}")'
    for name in numbers:
        try:
            _number(row[columns.index(name)])
        except ValueError:
            return f'{name} is not a number: "{printable(row[columns.index(name)])}"'
    return ""


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None
