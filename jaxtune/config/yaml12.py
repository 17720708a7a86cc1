"""YAML 1.2 as plain data plus the line of every key; whatever a reader could misunderstand is refused.

The nodes are walked by hand instead of by PyYAML's constructor, because only the nodes know lines, duplicates and aliases,
and because PyYAML's scalars are those of YAML 1.1. Here `1e-5` is a number, `no` is text, `017` is not 15, `1:30` is not 90.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable

MAX_NODES = 10_000

Key = tuple[str | int, ...]  # ("phases", 0, "epochs")

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


_KINDS = {"int": "a whole number", "float": "a number that fits 64 bits", "bool": "true or false"}


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalar rules of YAML 1.2's core schema."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _name, _pattern, _first in _SCALARS:
    Yaml12Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), ["" if c == "\0" else c for c in _first])


@dataclass(frozen=True)
class Origin:
    """Where a key was written; printed as `file.yaml:12` or `command line`."""

    file: str
    line: int | None = None
    key: str = ""  # the whole dotted key, where it was given on the command line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)


def parse_value(text: str) -> Any:
    """One value by the same rules as in a file, for `key=value` on the command line.

    Raises:
        ConfigError: `text` is not YAML.
    """
    data, _ = parse(text, "")
    return data


def parse(text: str, file: str) -> tuple[Any, dict[Key, Origin]]:
    try:
        loader = Yaml12Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, text, file)) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(f"{_at(file, line)}holds the character U+{error.character:04X}, which YAML does not allow") from error
    except RecursionError as error:
        raise ConfigError(f"{_at(file, None)}is nested too deeply to be an experiment") from error
    if node is None:
        return None, {}
    walk = _Walk(file)
    data = walk.value(node, ())
    if walk.problems:
        raise ConfigError(walk.problems)
    return data, walk.lines


def _at(file: str, line: int | None) -> str:
    """The beginning of a message; nothing for a value of the command line, whose caller says where it came from."""
    return f"{Origin(file, line)}: " if file else ""


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    rows = text.splitlines()
    row = rows[mark.line] if mark and mark.line < len(rows) else ""
    said = (error.problem or "cannot be read").replace("'<stream end>'", "the end")
    if "\t" in row[: len(row) - len(row.lstrip())] or "'\\t'" in said:
        return f"{_at(file, line)}a tab cannot indent YAML; use spaces"
    if "single document" in (error.context or ""):
        return f"{_at(file, line)}a second document starts here (---); expected one experiment in a file"
    if "alias" in (error.context or ""):
        return f'{_at(file, line)}not valid YAML: a text that starts with * must stand in quotes: "*.bias"'
    opened = ""
    if error.context and error.context_mark and line and error.context_mark.line + 1 != line:
        opened = f" ({error.context} that starts at line {error.context_mark.line + 1})"
    hint = (
        "; put patterns with * { } ! in quotes"
        if re.search(r"(?:^|[\s\[,:-])[^\s\"'#]*[*{!}]", row) and not row.lstrip().startswith("#")
        else ""
    )
    return f"{_at(file, line)}not valid YAML: {said}{opened}{hint}"


class _Walk:
    """Turns nodes into data; collects what is wrong instead of stopping at the first."""

    def __init__(self, file: str):
        self.file, self.lines, self.problems = file, {}, []
        self._count, self._open = 0, set[int]()

    def value(self, node: yaml.Node, key: Key) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise ConfigError(
                f"{_at(self.file, None)}has more than {MAX_NODES:,} values (an alias counts as often as it is used); not an experiment"
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise ConfigError(f"{_at(self.file, node.start_mark.line + 1)}this section contains itself through an alias")
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            self._refuse_tag(node)
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._item(part, (*key, index)) for index, part in enumerate(node.value)]
            return self._mapping(node, key)
        finally:
            self._open.discard(id(node))

    def _item(self, node: yaml.Node, key: Key) -> Any:
        self.lines[key] = Origin(self.file, node.start_mark.line + 1)
        return self.value(node, key)

    def _mapping(self, node: Any, key: Key) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        first: dict[Any, int] = {}
        merged: dict[Any, Any] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if name_node.tag == _TAG + "merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    for name, value in self._merge_source(source, key):
                        merged.setdefault(name, value)
                continue
            name = self._scalar(name_node) if isinstance(name_node, yaml.ScalarNode) else None
            if name is None or isinstance(name, float):
                self.problems.append(f"{_at(self.file, line)}a setting's name must be a word")
                continue
            here = (*key, name)
            if name in first:
                self.problems.append(f'{_at(self.file, line)}"{printable(dotted(here))}" is given twice (first at line {first[name]})')
                continue
            first[name] = line
            self.lines[here] = Origin(self.file, line)
            found[name] = self.value(value_node, here)
        return {**merged, **found} if merged else found

    def _merge_source(self, node: yaml.Node, key: Key) -> Iterator[tuple[Any, Any]]:
        if not isinstance(node, yaml.MappingNode):
            self.problems.append(f"{_at(self.file, node.start_mark.line + 1)}<< takes a section or a list of sections")
            return
        known = dict(self.lines)
        yield from self.value(node, key).items()
        self.lines.update(known)  # keys written here keep their own line

    def _scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix(_TAG)
        text = node.value
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text)
            if kind == "float":
                return self._float(text)
        except (KeyError, ValueError):
            self.problems.append(f"{_at(self.file, node.start_mark.line + 1)}{printable(text)} is not {_KINDS[kind]}")
            return None
        self._refuse_tag(node)
        return None

    def _float(self, text: str) -> float:
        if text.lower() == ".nan":
            return math.nan  # the one object, so that a NaN read back equals the one written
        number = float(text.lower().replace(".inf", "inf"))
        if math.isinf(number) and "inf" not in text.lower():
            raise ValueError(text)
        return number

    def _refuse_tag(self, node: yaml.Node) -> None:
        tag = printable(node.tag.replace(_TAG, "!!").rstrip(","))
        hint = "put a text that starts with ! in quotes" if not tag.startswith("!!") else "write plain values"
        self.problems.append(f"{_at(self.file, node.start_mark.line + 1)}the tag {tag} is not allowed; {hint}")
