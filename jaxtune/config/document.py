"""An experiment's file, with everything it `extends:`, before any class has looked at it.

Every key keeps the file and line it came from through all merging, so each later message can name them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.config.yaml12 import Key, Origin, parse
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """An experiment as it was written, before any class has looked at it."""

    data: dict[str, Any]
    lines: dict[Key, Origin]
    file: str  # as shown in messages
    problems: tuple[str, ...] = ()  # found so far, reported together with those of `build`

    def origin(self, key: Key) -> Origin:
        """Where `key`, or else the closest section around it, was written."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key[:-1]
        return Origin(self.file)

    def where(self, dotted: str) -> str:
        """`file.yaml:12` for "data.source.path": for errors that are found long after reading."""
        return str(self.origin(split_key(dotted)))


def split_key(dotted: str) -> Key:
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))


def get(data: Any, key: Key) -> Any:
    """The value at `key`, or None where the path ends early."""
    for part in key:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def load_document(path: str | Path) -> Document:
    """Reads one file and everything it `extends:`.

    Raises:
        ConfigError: unreadable, not YAML, duplicate keys, too large, or a circle of `extends`; each with file and line.
    """
    return _load(Path(path).expanduser(), (), {})


def _load(path: Path, chain: tuple[Path, ...], seen: dict[Path, Document]) -> Document:
    real = path.resolve()
    if real in seen:
        return seen[real]
    file = str(path)
    text = _read_text(path)
    data, lines = parse(text, file)
    if data is None or data == {}:
        raise ConfigError(f"{file}: is empty; expected an experiment (jaxtune new --data FILE writes one)")
    if not isinstance(data, dict):
        raise ConfigError(f"{file}:1: expected settings as `name: value`, found a {'list' if isinstance(data, list) else 'single value'}")
    document = Document(data, lines, file)
    if "extends" in data:
        document = _extended(document, path, (*chain, real), seen)
    seen[real] = document
    return document


def _extended(document: Document, path: Path, chain: tuple[Path, ...], seen: dict[Path, Document]) -> Document:
    """The files named by `extends`, the later over the earlier, and the document over them all."""
    named = document.data["extends"]
    at = document.origin(("extends",))
    names = named if isinstance(named, list) else [named]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{at}: extends must name a file or a list of files, relative to {path.parent}/")
    base: Document | None = None
    for name in names:
        target = Path(os.path.normpath(path.parent / Path(name).expanduser()))
        if target.resolve() in chain:
            circle = " -> ".join([*(part.name for part in chain[chain.index(target.resolve()) :]), target.name])
            raise ConfigError(f"{at}: extends goes round in a circle: {circle}")
        if not target.is_file():
            raise ConfigError(f"{at}: extends: {_not_found(target)}")
        layer = _load(target, chain, seen)
        base = layer if base is None else merge(base, layer)
    own = {k: v for k, v in document.data.items() if k != "extends"}
    lines = {k: v for k, v in document.lines.items() if k[0] != "extends"}
    return merge(base, Document(own, lines, document.file)) if base else document


def merge(base: Document, over: Document) -> Document:
    """`over` laid on `base`: sections are merged, everything else is replaced, and a section of another `kind` starts afresh."""
    lines = dict(base.lines)

    def replace(key: Key, value: Any) -> Any:
        for old in [k for k in lines if k[: len(key)] == key]:
            del lines[old]
        lines.update({k: v for k, v in over.lines.items() if k[: len(key)] == key})
        return value

    def lay(below: Any, above: Any, key: Key) -> Any:
        if not (isinstance(below, dict) and isinstance(above, dict)):
            return replace(key, above)
        if "kind" in above and above["kind"] != below.get("kind", above["kind"]):
            return replace(key, above)
        if key in over.lines:
            lines[key] = over.lines[key]
        joined = dict(below)
        for name, value in above.items():
            here = (*key, name)
            joined[name] = lay(below[name], value, here) if name in below else replace(here, value)
        return joined

    return Document(lay(base.data, over.data, ()), lines, over.file)


def _not_found(path: Path) -> str:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        return f"{path} is a folder; expected a YAML file" + (f" (in it: {', '.join(inside[:5])})" if inside else "")
    parent = path.parent
    if not parent.is_dir():
        return f"no file {path}: the folder {parent} does not exist"
    names = [p.name for p in parent.iterdir() if p.suffix in (".yaml", ".yml")]
    return f"no file {path}{nearest(path.name, names)}"


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(_not_found(path))
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} KiB; expected an experiment, not data")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from error
