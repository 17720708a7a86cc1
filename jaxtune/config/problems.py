"""Pydantic's errors in the words of this project: `file.yaml:3: task.loss.label_smoothing: must be less than 1 (got 2)`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from jaxtune.config.document import Document, get, split_key
from jaxtune.config.hints import suggest
from jaxtune.config.schema import field_at, place_at
from jaxtune.config.yaml12 import Key, Origin, dotted
from jaxtune.core.component import Component, nearest
from jaxtune.core.printable import printable

_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}",
    "none_required": "must be null",
}
_LISTS = ("tuple_type", "list_type", "set_type", "frozen_set_type")
_SECTIONS = ("dict_type", "mapping_type", "model_type", "model_attributes_type")


def explain(error: ValidationError, document: Document, cls: type[Component]) -> list[str]:
    """One line per problem, in the order of the file."""
    found: dict[tuple[str, Key], list[str]] = {}
    for item in error.errors(include_url=False):
        key = _key(cls, document.data, item["loc"], item["type"])
        for problem in _problems(item):
            found.setdefault((_group(item["type"]), key), []).append(problem)
    for group, key in list(found):  # a section was given: that it is no text, as another branch of a union wants, is no news
        if group == "wrong" and any(len(other) > len(key) and other[: len(key)] == key for _, other in found):
            del found[group, key]
    lines: list[tuple[tuple[bool, str, int], str]] = []
    for (group, key), problems in found.items():
        if group == "each":
            texts = [_located(document, cls, key, problem) for problem in problems]
        elif group == "unknown":
            texts = [_unknown(document, cls, key)]
        elif group == "missing":
            texts = [_missing(document, cls, key)]
        else:  # the branches of a union complain each for itself
            texts = [_wrong(document, key, problems)]
        lines += [(_order(origin), f"{origin}: {text}") for origin, text in texts]
    meant = {named[1] for _, text in lines if (named := re.search(r'(?:did you mean|this is) "([^"]*)"', text))}  # said already
    lines = [line for line in lines if not any(f': missing setting "{key}"' in line[1] for key in meant)]
    return list(dict.fromkeys(text for _, text in sorted(lines, key=lambda line: line[0])))


def _group(kind: str) -> str:
    """Problems of one place are told in one line, except those that a component found itself."""
    return {"extra_forbidden": "unknown", "missing": "missing"}.get(kind, "each" if kind in ("config", "value_error", "kind") else "wrong")


def _order(origin: Origin) -> tuple[bool, str, int]:
    return (bool(origin.key), origin.file, origin.line or 0)


def _key(cls: type[Component], data: Any, location: tuple[str | int, ...], kind: str) -> Key:
    """Pydantic's location without what it adds for unions and dictionaries, which are no keys of the file."""
    key: Key = ()
    for index, part in enumerate(location):
        here = (*key, part)
        missing = kind == "missing" and index == len(location) - 1
        if missing or get(data, here) is not None or _given(data, here) or place_at(cls, data, here):
            key = here
    return key


def _given(data: Any, key: Key) -> bool:
    section = get(data, key[:-1])
    return isinstance(section, Mapping) and key[-1] in section


def _problems(item: Any) -> list[str]:
    kind, got, context = item["type"], item["input"], item.get("ctx", {})
    if kind in ("extra_forbidden", "missing"):
        return [""]
    if kind in ("config", "kind"):
        return [item["msg"]]
    if kind == "value_error":
        return [str(context["error"])]
    if kind == "literal_error" or kind == "enum":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        choices = f"must be {'one of ' if len(known) > 1 else ''}{', '.join(known) or context['expected']}"
        return [f"{choices}\0{nearest(got, known) if isinstance(got, str) else ''}"]
    if kind in _LISTS:
        return [f"must be a list\0{f'; write [{_shown(got)}]' if isinstance(got, str | int | float) else ''}"]
    if kind in _SECTIONS:
        return ["must be a section with settings"]
    if kind in ("too_short", "too_long"):
        at_least = kind == "too_short"
        count = context["min_length"] if at_least else context["max_length"]
        return [
            f"must have at {'least' if at_least else 'most'} {count} item{'s' if count != 1 else ''} (has {context['actual_length']})\0"
        ]
    words = _WORDS.get(kind)
    if words is None:
        return [re.sub(r"^Input should be", "must be", item["msg"])]
    return [words.format(**{k: _number(v) for k, v in context.items()}) + f"\0{_advice(kind, got)}"]


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _advice(kind: str, got: Any) -> str:
    """What to write instead, where the value shows what was meant."""
    if kind == "bool_type" and str(got).lower() in ("yes", "on", "y", "1"):
        return "; write true"
    if kind == "bool_type" and str(got).lower() in ("no", "off", "n", "0"):
        return "; write false"
    if kind == "string_type" and isinstance(got, int | float):
        return f'; write "{str(got).lower() if isinstance(got, bool) else got}" in quotes'
    if kind in ("int_type", "int_from_float") and isinstance(got, float) and got.is_integer() and abs(got) < 1e15:
        return f"; write {int(got)}"
    if kind in ("int_type", "float_type") and isinstance(got, str):
        for parse in (int, float):
            try:
                number = parse(got.replace(",", ""))
            except ValueError:
                continue
            if kind == "float_type" or isinstance(number, int):
                return f"; write {number} without quotes"
    return ""


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{printable(value)}"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return printable(value if isinstance(value, int | float | list | Mapping) else type(value).__name__)


def _wrong(document: Document, key: Key, problems: list[str]) -> tuple[Origin, str]:
    origin = document.origin(key)
    parts = [problem.partition("\0") for problem in dict.fromkeys(problems)]
    said = " or ".join(dict.fromkeys(part[0].removeprefix("must be ") if index else part[0] for index, part in enumerate(parts)))
    hint = next((part[2] for part in parts if part[2]), "")
    got = "" if "(has " in said else f" (got {_shown(get(document.data, key))})"
    return origin, f"{dotted(key)}: {said}{got}{hint}"


def _located(document: Document, cls: type[Component], key: Key, problem: str) -> tuple[Origin, str]:
    """A problem that a component found; when it begins with the path of a setting, that setting's line is named."""
    named = re.match(r"([A-Za-z_][\w.]*): ", problem)
    if named:
        below = (*key, *split_key(named[1]))
        if place_at(cls, document.data, below):
            return document.origin(below), dotted(key) + ("." if key else "") + problem
    kind = (*key, "kind")
    origin = document.origin(kind if kind in document.lines and "kind" in problem.split(" ")[:2] else key)
    return origin, f"{dotted(key)}: {problem}" if key else problem


def _unknown(document: Document, cls: type[Component], key: Key) -> tuple[Origin, str]:
    origin = document.origin(key)
    return origin, f'unknown setting "{printable(origin.key or dotted(key))}"{suggest(cls, document.data, key)}'


def _missing(document: Document, cls: type[Component], key: Key) -> tuple[Origin, str]:
    field = field_at(cls, document.data, key)
    meaning = f" ({field.description.split('. ')[0].rstrip('.')})" if field and field.description else ""
    return document.origin(key), f'missing setting "{dotted(key)}"{meaning}'
