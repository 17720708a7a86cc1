"""`kind: parquet`: a Parquet file, or a folder of them read one after the other.

The table is read column by column into Arrow memory when the first record is asked for and is left out of the pickle, so a
worker that never touches it never pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import FileSource, Joined, Record, Records, data_files, known_columns, row_number


class Parquet(FileSource):
    """Fields: the columns, with Python values; a missing value is None."""

    columns: tuple[str, ...] | None = Field(default=None, description="The columns to read (default: all); reading fewer is faster.")

    def files(self, path: Path) -> list[Path]:
        return data_files(path, (".parquet", ".pq"))

    def read(self, path: Path) -> Records:
        files = self.files(path)
        parts = [_records(file, self.columns) for file in files]
        return parts[0] if len(parts) == 1 else Joined.of(parts, names=files)


@dataclass(frozen=True)
class ParquetRecords:
    file: Path
    count: int
    fields: tuple[str, ...]
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def _table(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.file) as opened:
                return opened.read(columns=list(self.fields))
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(self.file, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        return self._table.slice(row_number(index, self.count), 1).to_pylist()[0]


def _records(file: Path, columns: tuple[str, ...] | None) -> ParquetRecords:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            names, count = tuple(opened.schema_arrow.names), opened.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error
    known_columns(str(file), columns or (), names)
    if not count:
        raise DataError(f"{file}: expected rows, found an empty table")
    return ParquetRecords(file, count, columns or names)


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(f"{file}: cannot be read as Parquet ({printable(error, 160)}); write the file again")
