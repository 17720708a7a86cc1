"""From a YAML file and `key=value` words to one checked object; everything that is wrong is told at once.

The file is read and merged before the class is imported, so a slip in the YAML itself is answered without starting jax.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxtune.config.document import Document, get, load_document, split_key
from jaxtune.config.problems import explain
from jaxtune.config.schema import default_of, field_at, place_at
from jaxtune.config.yaml12 import Key, Origin, dotted, parse_value
from jaxtune.core.component import COLLECT, Component
from jaxtune.core.errors import ConfigError

__all__ = ["Document", "apply_overrides", "build", "load_document", "read"]

_SOURCE = "command line"


def read(path: str | Path, overrides: Sequence[str], cls: type[Component] | str) -> Any:
    """The experiment in a file, as an object of `cls` (a class, or `"module:Class"`, imported once the file is known to be YAML).

    Raises:
        ConfigError: all problems, one line each, with file and line.
    """
    document = load_document(path)
    wanted: Any = pkgutil.resolve_name(cls) if isinstance(cls, str) else cls
    return build(apply_overrides(document, overrides, wanted), wanted)


def build[T: Component](document: Document, cls: type[T]) -> T:
    """The object that a document describes.

    Raises:
        ConfigError: the document's own problems and everything the classes do not accept.
    """
    try:
        made = cls.model_validate(document.data, context=COLLECT)
    except ValidationError as error:
        raise ConfigError([*document.problems, *explain(error, document, cls)]) from error
    if document.problems:
        raise ConfigError(document.problems)
    return made


def apply_overrides(document: Document, overrides: Sequence[str], cls: type[Component]) -> Document:
    """The document with `key.path=value` words laid over it; those that cannot be are noted in its `problems`.

    A word that changes a `kind` comes first wherever it stands, and drops the settings of the other kind, like in `extends`.
    """
    data, lines, problems = copy.deepcopy(document.data), dict(document.lines), list(document.problems)
    wanted: dict[Key, tuple[str, Any]] = {}
    for word in overrides:
        name, equals, text = word.partition("=")
        if not equals or not name or not all(name.split(".")):
            problems.append(f'{_SOURCE}: "{word}": expected key=value, such as phases.0.epochs=2')
            continue
        try:
            value = parse_value(text)
        except ConfigError as error:
            problems.append(f"{_SOURCE}: {word}: {error}")
            continue
        if split_key(name) in wanted:
            problems.append(f'{_SOURCE}: "{name}" is given twice')
            continue
        wanted[split_key(name)] = (name, value)
    for key, (name, value) in sorted(wanted.items(), key=lambda item: item[0][-1] != "kind"):
        try:
            _set(data, lines, key, value, cls)
        except ConfigError as error:
            problems.append(f"{_SOURCE}: {name}: {error}")
    return Document(data, lines, document.file, tuple(problems))


def _set(data: Any, lines: dict[Key, Origin], key: Key, value: Any, cls: type[Component]) -> None:
    origin = Origin(_SOURCE, key=dotted(key))
    for depth in range(1, len(key)):
        here = key[:depth]
        section = _section(data, here[:-1], here[-1])
        below = get(section, here[-1:])
        if not isinstance(below, dict | list):
            section[here[-1]] = _opened(data, below, here, cls)
            lines.setdefault(here, origin)
    section = _section(data, key[:-1], key[-1])
    if key[-1] == "kind" and section.get("kind", value) != value:
        section.clear()
        _forget(lines, key[:-1])
        lines[key[:-1]] = origin
    section[key[-1]] = value
    _forget(lines, key)
    lines[key] = origin


def _section(data: Any, key: Key, part: str | int) -> Any:
    """The section or list at `key`, in which `part` can be set."""
    section = get(data, key)
    if isinstance(section, list):
        _check_index(section, part, key)
    return section


def _check_index(items: list[Any], part: str | int, key: Key) -> None:
    if not isinstance(part, int):
        hint = "" if not items else f", 0 to {len(items) - 1}" if len(items) > 1 else ", 0"
        raise ConfigError(f'"{dotted(key)}" is a list; name an item by its number{hint}')
    if part >= len(items):
        count = f"{len(items)} item{'s' if len(items) != 1 else ''}"
        raise ConfigError(f'"{dotted(key)}" has {count}, numbered from 0; there is no {part}')


def _opened(data: Any, value: Any, key: Key, cls: type[Component]) -> dict[str, Any]:
    """A section to write into where the file has none: a bare kind or a default one is opened, so that the rest of it stays."""
    field, found = field_at(cls, data, key), place_at(cls, data, key)
    place = found[0] if found else None
    if place and place.items and value is None:
        raise ConfigError(f'"{dotted(key)}" is a list that the file does not give; set it whole: {dotted(key)}=[...]')
    if place and place.choices:
        if isinstance(value, str):
            return {"kind": value}
        default = default_of(field) if field and value is None else None
        if isinstance(default, Component):
            return {"kind": place.choices[0].kind(default), **default.model_dump(exclude_unset=True)}
    elif value is not None and not (place and (place.sections or place.values)):
        raise ConfigError(f'"{dotted(key)}" is a single value ({value}), not a section')
    return {}


def _forget(lines: dict[Key, Origin], key: Key) -> None:
    for old in [k for k in lines if k[: len(key)] == key and k != key]:
        del lines[old]
