"""A transform takes one record and gives it back changed, or `None` to leave it out.

Besides the record it says what it does to the field names and to the known label names, so that a wrong column name is
answered before the first row is read and classes filtered away are not missed later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError

Record = dict[str, Any]
LabelNames = Mapping[str, tuple[str, ...]]


class Transform(Component):
    """One step of `data.transforms`. Records are never changed in place."""

    def __call__(self, record: Record) -> Record | None:
        """The changed record, or None when it is to be left out.

        Raises:
            DataError: the record's value is not of the kind this transform works on.
        """
        raise NotImplementedError

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """The field names after this transform.

        Raises:
            ConfigError: a field that this transform needs is not among `fields`.
        """
        return fields

    def label_names_after(self, names: LabelNames) -> LabelNames:
        """The known label names, per field, after this transform."""
        return names


def need_fields(what: str, needed: tuple[str, ...], fields: tuple[str, ...]) -> None:
    """Raises:
    ConfigError: names every needed field that the records do not have.
    """
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ConfigError([f'{what}: no field "{name}"{nearest(name, fields)} (the records have: {", ".join(fields)})' for name in missing])
