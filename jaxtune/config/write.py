"""A component as YAML that reads back as an equal object: the resolved experiment beside every run.

Settings stand in the order of their declaration, which is the order in which a person thinks; short lists stay on one line.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, ClassVar

import yaml

from jaxtune.config.yaml12 import Yaml12Loader
from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError
from jaxtune.core.files import write_whole

_WIDTH = 120
_LINE = 80  # a list or section of plain values up to this length stays on one line


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + Yaml12Loader.yaml_implicit_resolvers.get(first, [])
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *Yaml12Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    items = list(value)
    short = all(isinstance(item, str | int | float | None) for item in items) and len(repr(items)) <= _LINE
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    if re.search("[\x85\u2028\u2029]", value):  # line ends to YAML that PyYAML does not quote well
        style = '"'
    else:
        block = "\n" in value and not re.search(r"[ \t]\n|[^\n\x20-\x7e\xa0-\uffff]", value) and not value[0].isspace()
        style = "|" if block and not dumper.default_style else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    if value != value or value in (float("inf"), float("-inf")):
        text = ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    else:
        text = repr(float(value))
        if "e" in text and "." not in text:  # 1e-05: text to readers of YAML 1.1
            text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)


def to_yaml(component: Component, header: str = "") -> str:
    """The component with every setting spelled out; `header` becomes a comment above it.

    Raises:
        ConfigError: a value that YAML cannot hold (an array or an open file given from Python).
    """
    return settings_to_yaml(component.model_dump(), header)


def settings_to_yaml(settings: Mapping[str, Any], header: str = "") -> str:
    """As `to_yaml`, for some settings of a file: one that `extends:` another, say.

    Raises:
        ConfigError: as `to_yaml`.
    """
    text = yaml.dump(_plain(settings, ""), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    return "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines()) + text


def write(component: Component, path: Path, header: str = "") -> None:
    """Writes `to_yaml`, so that a crash leaves the whole file or none.

    Raises:
        ConfigError: as `to_yaml`.
    """
    write_whole(path, to_yaml(component, header))


def scalar(value: str | int | float | bool | None) -> str:
    """One plain value on one line, quoted where it must be: for files that are written line by line."""
    style = '"' if isinstance(value, str) and value.splitlines() not in ([], [value]) else None
    text = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, width=float("inf"), default_style=style)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any, key: str) -> Any:
    """`value` in the types that YAML has."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Component):  # a field typed by a base class, without OneOf
        raise ConfigError(f"{key}: a {type(value).__name__} is not written to YAML; its field must be Annotated with OneOf")
    if isinstance(value, Enum):
        return _plain(value.value, key)
    if isinstance(value, Mapping):
        return {_plain(name, key): _plain(part, f"{key}.{name}" if key else str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, f"{key}.{index}") for index, part in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(_plain(part, key) for part in value)
    if isinstance(value, PurePath | datetime.date):
        return str(value)
    for kind in (bool, int, float, str):  # NumPy's float64 is a float, a StrEnum a str
        if isinstance(value, kind):
            return kind(value)
    raise ConfigError(f"{key}: a {type(value).__name__} cannot be written to YAML; expected numbers, text, lists and sections")
