"""`kind: clean_text`: HTML to text, one Unicode form, white space, letter case, length limits, always in this order.

The order is fixed because each step makes the next one true: entities become characters before the Unicode form is chosen, and
lengths are measured on what the model will see.
"""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.transforms.base import Record, Transform, need_fields


class CleanText(Transform):
    """Cleans text fields; leaves out records whose text is too short. Missing texts (None) pass, for the checks to report."""

    fields: str | tuple[str, ...] = Field(default="text", description="The field to clean, or several.")
    html: Literal["keep", "strip"] = Field(
        default="keep", description="strip: tags, comments, scripts and styles go, entities become characters."
    )
    unicode: Literal["none", "nfc", "nfkc"] = Field(
        "nfc", description="nfc joins letters with their accents; nfkc also replaces look-alikes (ligatures, full width, ²)."
    )
    whitespace: Literal["keep", "collapse"] = Field(
        "collapse", description="collapse: any run of white space becomes one blank; ends are cut."
    )
    lowercase: bool = Field(default=False, description="Lower-case letters (only for models whose tokenizer was trained so).")
    min_characters: NonNegativeInt = Field(default=0, description="Records with a shorter text are left out.")
    max_characters: PositiveInt | None = Field(default=None, description="Longer texts are cut or left out, see too_long.")
    too_long: Literal["cut", "drop"] = Field(default="cut", description="What happens to texts over max_characters.")

    @model_validator(mode="after")
    def _has_effect(self) -> CleanText:
        if self.max_characters is None and self.too_long == "drop":
            raise ValueError("too_long has no effect without max_characters; set both")
        if self.max_characters is not None and self.min_characters > self.max_characters:
            raise ValueError(f"min_characters {self.min_characters} is more than max_characters {self.max_characters}: no text is left")
        plain = (self.html, self.unicode, self.whitespace) == ("keep", "none", "keep")
        if plain and not self.lowercase and not self.min_characters and self.max_characters is None:
            raise ValueError("clean_text with these settings changes nothing; leave it out")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.fields,) if isinstance(self.fields, str) else self.fields

    def fields_after(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        need_fields("clean_text", self.names, fields)
        return fields

    def __call__(self, record: Record) -> Record | None:
        cleaned = dict(record)
        for name in self.names:
            value = record[name]
            if value is None:
                continue
            if not isinstance(value, str):
                raise DataError(f'clean_text: expected text in field "{name}", found {type(value).__name__} {printable(value)}')
            text = self.clean(value)
            if len(text) < self.min_characters:
                return None
            if self.max_characters is not None and len(text) > self.max_characters:
                if self.too_long == "drop":
                    return None
                text = text[: self.max_characters].rstrip()
            cleaned[name] = text
        return cleaned

    def clean(self, text: str) -> str:
        """`text` after all steps but the length limits."""
        if self.html == "strip":
            text = strip_html(text)
        if self.unicode != "none":
            text = unicodedata.normalize("NFC" if self.unicode == "nfc" else "NFKC", text)
        if self.whitespace == "collapse":
            text = " ".join(text.split())
        return text.lower() if self.lowercase else text


_SILENT = frozenset({"script", "style", "head", "template", "noscript"})
# fmt: off
_INLINE = frozenset({
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd",
    "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
})
# fmt: on


class _Text(HTMLParser):
    """Collects what a browser would show; every element that is not inline ends a line."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent: list[str] = []  # open elements whose content is not shown

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SILENT:
            self.silent.append(tag)
        elif tag not in _INLINE:
            self.parts.append("\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _INLINE and tag not in _SILENT:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[self.silent.index(tag) :]
        elif tag not in _INLINE:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data)


def strip_html(text: str) -> str:
    """What a browser would show of `text`, a line per block; text without tags and entities comes back as it is."""
    if "<" not in text and "&" not in text:
        return text
    parser = _Text()
    parser.feed(text)
    parser.close()
    return re.sub(r"[ \t]*\n\s*", "\n", "".join(parser.parts)).strip()
