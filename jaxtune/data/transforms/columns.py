"""`kind: filter` and `kind: rename`: choose rows by the value of a field, and give fields the names a task expects."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.transforms.base import LabelNames, Record, Transform, need_fields

Scalar = bool | int | float | str


def _some(values: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    if not values:
        raise ValueError("expected at least one value")
    return values


Values = Annotated[tuple[Scalar, ...], AfterValidator(_some)]


class Filter(Transform):
    """Keeps the records whose field has one of the values, or all but those. 1 and "1" are the same here: files hold text."""

    field: str = Field(description="The field to look at.")
    keep: Values | None = Field(default=None, description="Values of the records that stay.")
    drop: Values | None = Field(default=None, description="Values of the records that go (in place of keep).")

    @model_validator(mode="after")
    def _one_list(self) -> Filter:
        if (self.keep is None) == (self.drop is None):
            raise ValueError("expected either keep or drop, found " + ("both" if self.keep else "neither"))
        return self

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        need_fields("filter", (self.field,), fields)
        return fields

    def label_names_after(self, names: LabelNames) -> LabelNames:
        """Class names that are filtered away are no longer known."""
        if self.field not in names:
            return names
        return {**names, self.field: tuple(name for name in names[self.field] if self._stays(name))}

    def __call__(self, record: Record) -> Record | None:
        value = record[self.field]
        if value is not None and not isinstance(value, Scalar):
            raise DataError(f'filter: expected a text or number in field "{self.field}", found {type(value).__name__}')
        return record if self._stays(value) else None

    def _stays(self, value: Scalar | None) -> bool:
        if self.keep is not None:
            return str(value) in {str(kept) for kept in self.keep}
        return str(value) not in {str(dropped) for dropped in self.drop or ()}


class Rename(Transform):
    """Gives fields new names."""

    columns: dict[str, str] = Field(min_length=1, description="New name by old name: {review: text, stars: label}.")

    @model_validator(mode="after")
    def _different(self) -> Rename:
        new = list(self.columns.values())
        doubled = sorted({name for name in new if new.count(name) > 1})
        if doubled:
            raise ValueError(f"two fields would be named {', '.join(doubled)}; give each its own name")
        return self

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        need_fields("rename", tuple(self.columns), fields)
        renamed = tuple(self.columns.get(name, name) for name in fields)
        taken = sorted({name for name in renamed if renamed.count(name) > 1})
        if taken:
            raise ConfigError(f"rename: the records have a field {', '.join(taken)} already; rename that one too, or choose another name")
        return renamed

    def label_names_after(self, names: LabelNames) -> LabelNames:
        return {self.columns.get(name, name): known for name, known in names.items()}

    def __call__(self, record: Record) -> Record:
        return {self.columns.get(name, name): value for name, value in record.items()}
