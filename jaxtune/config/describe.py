"""Help and editor schema, made from the components themselves: a setting is described once, where it is declared."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from jaxtune.config.schema import Place, field_place, kinds
from jaxtune.config.words import Row, describe, row_of, table_name
from jaxtune.core.component import Component, OneOf, nearest
from jaxtune.core.errors import ConfigError


@dataclass(frozen=True)
class Description:
    """What `jaxtune describe THING` shows."""

    title: str
    text: str
    rows: tuple[Row, ...] = ()
    kinds: Mapping[str, str] | None = None  # of a table: kind -> one line

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}


def find(thing: str, root: type[Component], hooks: Sequence[Callable[[str], Description | None]] = ()) -> Description:
    """What `thing` means: a section or dotted key of `root`, a table, a kind (`adamw`, `optimizers/adamw`), a setting's name.

    `hooks` are asked first; one that does not know the thing answers None.

    Raises:
        ConfigError: nothing of that name, or several kinds of that name in different tables.
    """
    for hook in hooks:
        found = hook(thing)
        if found:
            return found
    table, slash, kind = thing.partition("/")
    if slash:
        choice = next((choice for choice in tables(root) if table_name(choice) == table), None)
        if choice is None:
            raise ConfigError(f'there is no table "{table}"{nearest(table, _table_names(root))} (tables: {", ".join(_table_names(root))})')
        return _of_kind(choice, kind)
    return _of_key(thing, root) or _of_name(thing, root)


def tables(root: type[Component]) -> Iterator[OneOf]:
    """Every table below `root`, the nearest first; the classes of a table are imported only when the search goes on below it."""
    queue: list[type[Component] | OneOf] = [root]
    seen: set[int] = set()
    while queue:
        node = queue.pop(0)
        for cls in kinds(node).values() if isinstance(node, OneOf) else (node,):
            if id(cls) in seen:
                continue
            seen.add(id(cls))
            for field in cls.model_fields.values():
                sections, choices = _reachable(field_place(field))
                queue += sections
                for choice in choices:
                    if id(choice.table) not in seen:
                        seen.add(id(choice.table))
                        yield choice
                        queue.append(choice)


def _reachable(place: Place) -> tuple[list[type[Component]], list[OneOf]]:
    """The section classes and the tables of a place, also those of its items."""
    sections, choices = list(place.sections), list(place.choices)
    for part in (place.items, place.values):
        if part:
            more = _reachable(part)
            sections, choices = sections + more[0], choices + more[1]
    return sections, choices


def _all_classes(place: Place) -> Iterator[type[Component]]:
    sections, choices = _reachable(place)
    yield from sections
    for choice in choices:
        yield from kinds(choice).values()


def _doc(cls: type) -> str:
    """The class's own docstring, or else the first line of its module's."""
    return inspect.cleandoc(cls.__doc__) if cls.__doc__ else (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]


def _table_names(root: type[Component]) -> list[str]:
    return sorted({table_name(choice) for choice in tables(root)})


def _of_class(title: str, cls: type[Component]) -> Description:
    return Description(title, _doc(cls), tuple(describe(cls)))


def _of_kind(choice: OneOf, kind: str) -> Description:
    try:
        return _of_class(f"{table_name(choice)}/{kind}", choice.find(kind))
    except PydanticCustomError as error:
        raise ConfigError(f"{table_name(choice)}: {error.message()}") from error


def _of_table(title: str, choice: OneOf, text: str = "") -> Description:
    lines = {}
    for kind in sorted(choice.table):
        try:
            lines[kind] = _doc(choice.find(kind)).split("\n")[0]
        except PydanticCustomError as error:
            lines[kind] = error.message()
    return Description(title, text, kinds=lines)


def _of_place(title: str, field: FieldInfo) -> Description:
    text = " ".join((field.description or "").split())
    sections, choices = _reachable(field_place(field))
    if choices:
        return _of_table(title, choices[0], text)
    if sections:
        about = "\n\n".join(filter(None, (text, _doc(sections[0]))))
        return Description(title, about, tuple(describe(sections[0])))
    return Description(title, text, (row_of(title.rpartition(".")[2], field),))


def _of_key(thing: str, root: type[Component]) -> Description | None:
    """`phases.optimizer.schedule`, with or without the numbers of list items; below a table any kind that knows the word."""
    field: FieldInfo | None = None
    for word in (part for part in thing.split(".") if not part.isdecimal()):
        owner = root if field is None else next((cls for cls in _all_classes(field_place(field)) if word in cls.model_fields), None)
        if owner is None or word not in owner.model_fields:
            return None
        field = owner.model_fields[word]
    return _of_place(thing, field) if field else None


def _of_name(thing: str, root: type[Component]) -> Description:
    """A table, a kind, or a setting by its last word."""
    names: dict[str, None] = {}
    holders: list[OneOf] = []
    for choice in tables(root):
        names |= dict.fromkeys([table_name(choice), *choice.table])
        if table_name(choice) == thing:
            return _of_table(thing, choice)
        if thing in choice.table:
            holders.append(choice)
    if len(holders) == 1:
        return _of_kind(holders[0], thing)
    if holders:
        raise ConfigError(f'"{thing}" is the name of several things; write {" or ".join(f"{table_name(c)}/{thing}" for c in holders)}')
    settings = list(_all_settings(root))
    if rows := _joined([row_of(path, field) for path, field in settings if path.rpartition(".")[2] == thing]):
        return Description(thing, f"{len(rows)} setting{'s' if len(rows) > 1 else ''} of this name", rows)
    known = [*names, *root.model_fields, *(path.rpartition(".")[2] for path, _ in settings)]
    raise ConfigError(
        f'nothing is called "{thing}"{nearest(thing, known)} '
        f"(sections: {', '.join(root.model_fields)}; tables: {', '.join(_table_names(root))}; or a kind, or a setting)"
    )


def _joined(rows: list[Row]) -> tuple[Row, ...]:
    """Rows that say the same about kinds of one table as one row: `schedules/{cosine, linear}.warmup`."""
    same: dict[tuple[str, str, Row], list[str]] = {}
    for row in rows:
        table, _, rest = row.name.partition("/")
        kind, _, name = rest.partition(".")
        same.setdefault((table if rest else row.name, name, replace(row, name="")), []).append(kind)
    return tuple(
        replace(row, name=f"{table}/{kinds[0] if len(kinds) == 1 else '{' + ', '.join(kinds) + '}'}.{name}" if name else table)
        for (table, name, row), kinds in same.items()
    )


def _all_settings(root: type[Component]) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting once: those of sections by their path (`data.batch_size`), those of kinds by table (`optimizers/adamw.beta1`)."""
    yield from _section_settings(root, "", ())
    for choice in tables(root):
        for kind, cls in kinds(choice).items():
            yield from _section_settings(cls, f"{table_name(choice)}/{kind}.", ())


def _section_settings(cls: type[Component], path: str, above: tuple[type, ...]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in cls.model_fields.items():
        yield path + name, field
        for section in _reachable(field_place(field))[0]:
            if section not in (*above, cls):
                yield from _section_settings(section, f"{path}{name}.", (*above, cls))
