"""Which settings may stand where, read from the component classes; what a file says decides which kinds are looked at.

The tree is walked along the data because tables are lazy: a hint for one misspelt word must not import every optimizer.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, TypeAliasType, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

from jaxtune.config.yaml12 import Key
from jaxtune.core.component import Component, OneOf


@dataclass(frozen=True)
class Place:
    """What may stand at one place of an experiment, beside plain values."""

    sections: tuple[type[Component], ...] = ()
    choices: tuple[OneOf, ...] = ()  # components picked by `kind`
    items: Place | None = None  # of a list
    values: Place | None = None  # of a mapping

    def __or__(self, other: Place) -> Place:
        items = self.items | other.items if self.items and other.items else self.items or other.items
        values = self.values | other.values if self.values and other.values else self.values or other.values
        return Place(self.sections + other.sections, self.choices + other.choices, items, values)


def place_of(annotation: Any, metadata: Sequence[Any] = ()) -> Place:
    """The place that an annotation such as `tuple[Annotated[Metric, OneOf(METRICS)], ...] | None` describes."""
    choices = tuple(part for part in metadata if isinstance(part, OneOf))
    if choices:
        return Place(choices=choices)
    if isinstance(annotation, TypeAliasType):
        return place_of(annotation.__value__)
    if isinstance(annotation, type) and not get_args(annotation):
        return Place(sections=(annotation,)) if issubclass(annotation, Component) else Place()
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return place_of(args[0], args[1:])
    found = Place()
    if origin in (Union, types.UnionType):
        for part in args:
            found = found | place_of(part)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        found = Place(values=place_of(args[1]))
    elif isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet):
        for part in args:
            found = found | (Place() if part is Ellipsis else place_of(part))
        found = Place(items=found)
    return found


def field_place(field: FieldInfo) -> Place:
    return place_of(field.annotation, field.metadata)


def default_of(field: FieldInfo) -> Any:
    """The default value, or None for a required field."""
    value = field.get_default(call_default_factory=not field.default_factory_takes_validated_data)
    return None if value is PydanticUndefined else value


def chosen(place: Place, value: Any) -> type[Component] | None:
    """The class that a value at this place makes; `value` is YAML data, a component (a default) or None for not given."""
    if isinstance(value, Component):
        return type(value)
    kind = value if isinstance(value, str) else value.get("kind") if isinstance(value, Mapping) else None
    for choice in place.choices:
        with contextlib.suppress(PydanticCustomError):
            return choice.find(kind) if kind is not None else None
    if not place.sections or not (value is None or isinstance(value, Mapping)):
        return None
    return max(place.sections, key=lambda cls: sum(name in cls.model_fields for name in value or ()))


def kinds(choice: OneOf) -> dict[str, type[Component]]:
    """The classes of a table by kind, sorted; without those whose package is not installed here (`check` says so when one is used)."""
    found = {}
    for kind in sorted(choice.table):
        with contextlib.suppress(PydanticCustomError):
            found[kind] = choice.find(kind)
    return found


def inside(place: Place, value: Any) -> Iterator[tuple[str | int, Place, Any]]:
    """The items of a list (one even when there is none, for hints) or the values of a mapping."""
    if place.items:
        parts = value if isinstance(value, list | tuple) and value else [None]
        yield from ((index, place.items, part) for index, part in enumerate(parts))
    if place.values and isinstance(value, Mapping):
        yield from ((name, place.values, part) for name, part in value.items())


def settings(cls: type[Component], data: Any, key: Key = (), above: tuple[type, ...] = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Every setting of the tree below `cls`, with the kinds that `data` (or else the defaults) choose."""

    def below(place: Place, value: Any, here: Key) -> Iterator[tuple[Key, FieldInfo]]:
        section = chosen(place, value)
        if section is not None and section not in above and section is not cls:
            yield from settings(section, value, here, (*above, cls))
        for name, part, item in inside(place, value):
            yield from below(part, item, (*here, name))

    for name, field in cls.model_fields.items():
        yield (*key, name), field
        given = data.get(name) if isinstance(data, Mapping) else getattr(data, name, None) if isinstance(data, Component) else None
        yield from below(field_place(field), default_of(field) if given is None else given, (*key, name))


def place_at(cls: type[Component], data: Any, key: Key) -> tuple[Place, Any] | None:
    """The place that `key` names and the value there (the default where none is given), or None when there is no such place."""
    place, value = Place(sections=(cls,)), data
    for name in key:
        owner = chosen(place, value)
        if owner is not None and name in owner.model_fields:
            field = owner.model_fields[str(name)]
            given = value.get(name) if isinstance(value, Mapping) else getattr(value, str(name), None)
            place, value = field_place(field), default_of(field) if given is None else given
        elif place.items and isinstance(name, int):
            value = value[name] if isinstance(value, list | tuple) and name < len(value) else None
            place = place.items
        elif place.values and isinstance(value, Mapping) and name in value:
            place, value = place.values, value[name]
        else:
            return None
    return place, value


def field_at(cls: type[Component], data: Any, key: Key) -> FieldInfo | None:
    """The declaration of one setting."""
    found = place_at(cls, data, key[:-1])
    owner = chosen(*found) if found else None
    return owner.model_fields.get(str(key[-1])) if owner else None
