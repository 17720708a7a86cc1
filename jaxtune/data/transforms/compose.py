"""`kind: cut_text` and `kind: compose`: make the fields that a task wants out of those that the data have.

An article whose first line is its headline becomes two fields by `cut_text`; an instruction around it is one by `compose`.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

from pydantic import Field, field_validator, model_validator

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.transforms.base import Record, Transform, need_fields


def new_fields(what: str, fields: tuple[str, ...], made: tuple[str, ...]) -> tuple[str, ...]:
    """Raises:
    ConfigError: a field that is to be made is there already.
    """
    taken = [name for name in made if name in fields]
    if taken:
        raise ConfigError(f"{what}: the records have a field {', '.join(taken)} already; choose another name, or rename that one")
    return (*fields, *made)


class CutText(Transform):
    """Cuts a text at the first occurrence of a separator into two new fields, both without the white space around them.

    A record whose text does not hold the separator, or nothing before or behind it, is left out.
    """

    field: str = Field(description="The text to cut.")
    at: str = Field(default="\n", min_length=1, description="The separator; default: the end of the first line.")
    into: tuple[str, str] = Field(description="Names of the two new fields: [headline, article].")

    @model_validator(mode="after")
    def _different(self) -> CutText:
        if self.into[0] == self.into[1]:
            raise ValueError(f'both parts would be named "{self.into[0]}"; give each its own name')
        return self

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        need_fields("cut_text", (self.field,), fields)
        return new_fields("cut_text", fields, self.into)

    def __call__(self, record: Record) -> Record | None:
        before, found, behind = _text(record, self.field, "cut_text").strip().partition(self.at)
        if not (found and before.strip() and behind.strip()):
            return None
        return {**record, self.into[0]: before.strip(), self.into[1]: behind.strip()}


class Compose(Transform):
    """A new text field from a template with the other fields in braces: "Headline for: {article}"; {article:.800} takes 800 characters."""

    into: str = Field(min_length=1, description="Name of the new field.")
    template: str = Field(
        min_length=1, description="Text with fields in braces; {field:.800} takes its first 800 characters, {{ is a brace."
    )

    @field_validator("template")
    @classmethod
    def _names_only(cls, value: str) -> str:
        """Nothing but plain field names may stand in the braces, so that a template cannot reach into objects."""
        try:
            used = list(_fields(value))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces that are meant") from error
        wrong = [name for name in used if not name.isidentifier()]
        if wrong or not used:
            found = f'found "{{{wrong[0]}}}"' if wrong else "found none"
            raise ValueError(f"expected names of fields in braces, {found}")
        return value

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        need_fields("compose", tuple(dict.fromkeys(_fields(self.template))), fields)
        return new_fields("compose", fields, (self.into,))

    def __call__(self, record: Record) -> Record:
        values = {name: _text(record, name, "compose") for name in _fields(self.template)}
        return {**record, self.into: self.template.format_map(values)}


def _fields(template: str) -> Iterator[str]:
    for _, name, form, _ in string.Formatter().parse(template):
        if name is not None:
            yield name if "{" not in (form or "") else f"{name}:{form}"


def _text(record: Record, field: str, what: str) -> str:
    """Raises:
    DataError: the field holds no text or number.
    """
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f'{what}: expected a text in field "{field}", found {type(value).__name__}')
    return str(value)
