"""Text from the outside, made safe and short for a message: data may hold terminal escapes that would repaint the reader's screen."""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")


def harmless(text: str) -> str:
    """A piece of text as it is, but for characters that steer a terminal; lines and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")


def printable(value: object, limit: int = 60) -> str:
    """`value` as one line of at most `limit` characters, without escape sequences, control and direction-changing characters."""
    text = _ESCAPES.sub("", str(value)[: 8 * limit])
    text = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
