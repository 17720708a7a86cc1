"""A setting in plain words, from its declaration: type, default, limits, meaning."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeAliasType, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jaxtune.config.schema import Place, default_of, field_place
from jaxtune.core.component import Component, OneOf

_PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null", Any: "anything"}
_LIMITS = (("gt", "more than"), ("ge", "at least"), ("lt", "less than"), ("le", "at most"), ("multiple_of", "a multiple of"))


@dataclass(frozen=True)
class Row:
    """One setting, in plain words."""

    name: str
    type: str
    default: str  # "required" where there is none
    constraints: str
    description: str


def describe(cls: type[Component]) -> list[Row]:
    """The settings of one component, in the order of their declaration."""
    return [row_of(name, field) for name, field in cls.model_fields.items()]


def table_name(choice: OneOf) -> str:
    """`optimizers` for the table that stands as OPTIMIZERS in its package."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is choice.table and name.isupper():
                return name.lower()
    return "kinds"


def type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """`tuple[int, ...] | None` as "list of whole number, or null"."""
    choice = next((part for part in metadata if isinstance(part, OneOf)), None)
    if choice:
        return f"one of the {table_name(choice)}"
    if isinstance(annotation, TypeAliasType):
        return type_words(annotation.__value__)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0], args[1:])
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return ", or ".join(type_words(part) for part in args)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"section of {type_words(args[0])}: {type_words(args[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet):
        parts = dict.fromkeys(type_words(part) for part in args if part is not Ellipsis)
        return "list of " + ", ".join("sections" if part == "section" else part.removeprefix("one of the ") for part in parts)
    return _class_words(annotation)


def _class_words(annotation: Any) -> str:
    if not isinstance(annotation, type):
        return _PLAIN.get(annotation, str(annotation))
    if issubclass(annotation, Component):
        return "section"
    if issubclass(annotation, Enum):
        return "one of " + ", ".join(str(member.value) for member in annotation)
    return _PLAIN.get(annotation, "path" if issubclass(annotation, PurePath) else annotation.__name__)


def row_of(name: str, field: FieldInfo) -> Row:
    words = type_words(field.annotation, field.metadata)
    default = "required" if field.is_required() else _default_words(default_of(field), field_place(field))
    return Row(name, words, default, _constraints(field.annotation, field.metadata), " ".join((field.description or "").split()))


def _default_words(value: Any, place: Place) -> str:
    if isinstance(value, Component):
        return place.choices[0].kind(value) if place.choices else "its defaults"
    if isinstance(value, tuple | list | set | frozenset):
        items = place.items or Place()
        return "[" + ", ".join(_default_words(part, items) for part in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_default_words(part, Place())}" for name, part in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return '""' if value == "" else str(value.value if isinstance(value, Enum) else value)


def _constraints(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    found = [f"{words} {limit}" for name, words in _LIMITS for part in metadata if (limit := getattr(part, name, None)) is not None]
    for part in metadata:
        for name, words in (("min_length", "at least"), ("max_length", "at most")):
            if (length := getattr(part, name, None)) is not None:
                found.append(f"{words} {length} long")
        if (pattern := getattr(part, "pattern", None)) is not None:
            found.append(f"like {pattern}")
        if isinstance(part, FieldInfo):
            found.append(_constraints(None, part.metadata))
    if get_origin(annotation) is Annotated:
        found.append(_constraints(get_args(annotation)[0], get_args(annotation)[1:]))
    elif get_origin(annotation) in (Union, types.UnionType):
        found += [_constraints(part) for part in get_args(annotation)]
    return ", ".join(dict.fromkeys(filter(None, found)))
