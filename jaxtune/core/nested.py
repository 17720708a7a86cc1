"""Nested settings (mappings and lists, as YAML and JSON hold them) as dotted keys: what stands where, and what two of them have differently.

A list of plain values is one value, because that is how it is written and overridden; a list of mappings is opened by number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not opened further, in order."""
    inner = _parts(value)
    if inner is None:
        yield key, value
        return
    for name, part in inner.items():
        yield from leaves(part, _under(key, name))


def differences(before: Any, after: Any, key: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value before, value after), where the two differ; None for what one of them does not have, which is not opened."""
    if before == after:
        return {}
    ours, theirs = _parts(before), _parts(after)
    if ours is None or theirs is None or isinstance(before, Mapping) != isinstance(after, Mapping):
        return {key: (before, after)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*ours, *theirs)):
        found |= differences(ours.get(name), theirs.get(name), _under(key, name))
    return found


def _parts(value: Any) -> Mapping[str, Any] | None:
    """What stands directly below; None for a single value."""
    if isinstance(value, Mapping):
        return value or None
    if isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        return {str(place): part for place, part in enumerate(value)}
    return None


def _under(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)
