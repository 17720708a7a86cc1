"""`kind: in_memory`: records made in Python, for notebooks and tests.

Up to a hundred plain records are written into the resolved experiment; more (or arrays) are named there by fingerprint only, so
that a run folder never holds a second copy of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field, field_serializer

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.sources.base import Record, Records, Source, digest, row_number

WRITTEN_OUT = 100


class InMemory(Source):
    """Fields: every key that occurs; a record without one has None there. Equal when the content is."""

    records: tuple[dict[str, Any], ...] | Mapping[str, int | str] = Field(
        description="The records: mappings from field to text, number, list or array. (An experiment resolved from Python with more than "
        f"{WRITTEN_OUT} records says {{count, fingerprint}} here: pass the records again to use it.)"
    )

    @field_serializer("records")
    def _written(self, records: Any) -> Any:
        if isinstance(records, Mapping) or (len(records) <= WRITTEN_OUT and all(_plain(record) for record in records)):
            return records
        return {"count": len(records), "fingerprint": self.fingerprint()}

    def open(self) -> Records:
        if isinstance(self.records, Mapping):
            raise ConfigError(
                f"in_memory: the {self.records.get('count')} records of this experiment were made in Python and are not stored with it; "
                "run it from Python with the same records, or save them as JSON lines and use `kind: json_lines`"
            )
        if not self.records:
            raise DataError("in_memory: expected records, found none")
        return MemoryRecords(self.records, tuple(dict.fromkeys(name for record in self.records for name in record)))

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        if isinstance(self.records, Mapping):
            return str(self.records.get("fingerprint"))
        return digest(part for record in self.records for part in ("record", *_parts(record)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InMemory) and self._fingerprint == other._fingerprint

    def __hash__(self) -> int:
        return hash(self._fingerprint)


@dataclass(frozen=True)
class MemoryRecords:
    records: tuple[dict[str, Any], ...]
    fields: tuple[str, ...]
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[row_number(index, len(self.records))]
        return {name: record.get(name) for name in self.fields}


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_plain(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _parts(value: Any) -> list[str]:
    """Texts that two values share only when they are the same."""
    if isinstance(value, Mapping):
        return ["mapping", str(len(value)), *(part for name, item in sorted(value.items()) for part in (name, *_parts(item)))]
    if isinstance(value, list | tuple):
        return ["list", str(len(value)), *(part for item in value for part in _parts(item))]
    if isinstance(value, np.ndarray):
        return ["array", value.dtype.str, str(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return [type(value).__name__, repr(value)]
