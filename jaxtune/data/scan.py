"""One pass over the records: what transforms leave, the light columns that splits and checks need, and a content key per row.

Heavy fields (texts, pixels) are looked at and let go, so a pass over a large source holds a few numbers per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.duplicates import content_key
from jaxtune.data.sources.base import Record, Records, row_number
from jaxtune.data.transforms.base import Transform


@dataclass(frozen=True)
class Cleaned:
    """Records after transforms, without the rows that transforms leave out. `rows` are row numbers of the source."""

    source: Records
    transforms: tuple[Transform, ...]
    rows: np.ndarray
    fields: tuple[str, ...]
    label_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        record = apply(self.transforms, self.source[int(self.rows[row_number(index, len(self.rows))])])
        assert record is not None, "a transform kept a row once and dropped it later; transforms must depend on the record alone"
        return record


@dataclass(frozen=True)
class Scan:
    """What a pass has found.

    Attributes:
        records: the rows that are left.
        columns: light columns by name, one value per kept row.
        keys: content key per kept row; equal keys mean equal content.
        dropped: rows that transforms left out.
    """

    records: Cleaned
    columns: Mapping[str, list[Any]]
    keys: list[str]
    dropped: int


def scan(records: Records, transforms: Sequence[Transform], content: Sequence[str], light: Sequence[str]) -> Scan:
    """Reads every record once.

    Args:
        content: fields whose values decide whether two rows are copies.
        light: fields whose values are kept.

    Raises:
        ConfigError: a transform, or one of the fields, names a column that is not there.
        DataError: no row is left.
    """
    fields, names = records.fields, records.label_names
    for transform in transforms:
        fields, names = transform.fields_after(fields), transform.label_names_after(names)
    missing = [name for name in (*content, *light) if name not in fields]
    if missing:
        raise ConfigError(
            [f'no column "{name}" in the data{nearest(name, fields)} (columns: {", ".join(fields)})' for name in dict.fromkeys(missing)]
        )
    rows: list[int] = []
    keys: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in light}
    for number in range(len(records)):
        record = apply(transforms, records[number])
        if record is None:
            continue
        rows.append(number)
        keys.append(content_key(*(record[name] for name in content)))
        for name in light:
            columns[name].append(record[name])
    if not rows:
        raise DataError(f"no row is left: the source has {len(records)}, the transforms leave all of them out; loosen them")
    cleaned = Cleaned(records, tuple(transforms), np.array(rows, np.int64), fields, names)
    return Scan(cleaned, columns, keys, len(records) - len(rows))


def apply(transforms: Sequence[Transform], record: Record) -> Record | None:
    """The record after all transforms, or None where one leaves it out."""
    for transform in transforms:
        changed = transform(record)
        if changed is None:
            return None
        record = changed
    return record
