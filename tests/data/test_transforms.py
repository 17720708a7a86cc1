"""Record transforms: cleaning, filtering and renaming, and what they say about fields and label names before any row is read."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.printable import printable
from jaxtune.data import TRANSFORMS
from jaxtune.data.transforms.base import Transform
from jaxtune.data.transforms.clean_text import CleanText, strip_html
from jaxtune.data.transforms.columns import Filter, Rename


def cleaned(text: str, **options: object) -> str | None:
    record = CleanText.model_validate(options)({"text": text, "label": "x"})
    assert record is None or record["label"] == "x"
    return None if record is None else record["text"]


def test_defaults_join_accents_and_collapse_white_space() -> None:
    assert cleaned("  cafe\u0301 \u00a0\n\tﬁne ") == "caf\u00e9 ﬁne"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"unicode": "nfkc"}, "A fine ² <b>x</b>".replace("²", "2")),
        ({"unicode": "none", "lowercase": True}, "a ﬁne ² <b>x</b>"),
        ({"unicode": "none", "whitespace": "keep", "html": "strip"}, "A  ﬁne ² x"),
        ({"unicode": "none", "max_characters": 2}, "A"),
        ({"max_characters": 5, "too_long": "drop"}, None),
        ({"min_characters": 100}, None),
        ({"min_characters": 16, "max_characters": 16}, "A ﬁne ² <b>x</b>"),
    ],
)
def test_every_setting_has_its_effect(options: dict[str, object], expected: str | None) -> None:
    assert cleaned("A  ﬁne ² <b>x</b>", **options) == expected


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One<br/>two</p><p>three <b>bo</b>ld</p>", "One\ntwo\nthree bold"),
        ("a<script>var x = '<p>';</script>b<style>p {}</style>c", "abc"),
        ("Tom &amp; Jerry &lt;3 &#163;5 &eacute;", "Tom & Jerry <3 £5 é"),
        ("<!-- gone --><!DOCTYPE html><html><head><title>gone</title></head><body>kept</body></html>", "kept"),
        ("<ul><li>a</li>\n  <li>b</li></ul>", "a\nb"),
        ("unclosed <b>bold <i>both</b> end", "unclosed bold both end"),
        ("1 < 2 and 3 > 2, I <3 it", "1 < 2 and 3 > 2, I <3 it"),
        ("no markup\n\n  at all ", "no markup\n\n  at all "),
        ("<noscript><template>gone</noscript>kept", "kept"),
        ("</script>stray end", "stray end"),
    ],
)
def test_html_becomes_what_a_browser_shows(html: str, text: str) -> None:
    assert strip_html(html) == text


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    for unicode in ("nfc", "nfkc"):
        once = cleaned(text, unicode=unicode)
        assert once is not None and cleaned(once, unicode=unicode) == once and "\n" not in once


def test_several_fields_and_missing_texts() -> None:
    transform = CleanText(fields=("first", "second"), min_characters=2)
    record = {"first": " ab  c", "second": None, "n": 1}
    assert transform(record) == {"first": "ab c", "second": None, "n": 1} and record["first"] == " ab  c"
    assert transform({"first": "abc", "second": "d"}) is None
    with pytest.raises(DataError, match='expected text in field "second", found int 5'):
        transform({"first": "abc", "second": 5})
    with pytest.raises(ConfigError, match='no field "second"; did you mean "seconds"\\? \\(the records have: first, seconds\\)'):
        transform.fields_after(("first", "seconds"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"too_long": "drop"}, "no effect without max_characters"),
        ({"unicode": "none", "whitespace": "keep"}, "changes nothing"),
        ({"min_characters": 9, "max_characters": 5}, "no text is left"),
    ],
)
def test_settings_without_effect_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CleanText.model_validate(options)


def test_filter_compares_as_text() -> None:
    keep = Filter(field="label", keep=("0", 1, "x"))
    assert [keep({"label": value}) is not None for value in ("0", 0, "1", 1, "2", None, "x")] == [
        True,
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    drop = Filter(field="label", drop=("x",))
    assert drop({"label": "x"}) is None and drop({"label": None}) == {"label": None}
    names = {"label": ("0", "1", "2"), "other": ("a",)}
    assert keep.label_names_after(names) == {"label": ("0", "1"), "other": ("a",)}
    assert Filter(field="label", drop=(2,)).label_names_after(names)["label"] == ("0", "1")
    with pytest.raises(ConfigError, match='no field "label"'):
        keep.fields_after(("text",))
    with pytest.raises(DataError, match='expected a text or number in field "label", found list'):
        keep({"label": ["0"]})
    for options in ({}, {"keep": ["a"], "drop": ["b"]}, {"keep": []}):
        with pytest.raises(ValidationError, match=r"expected (either keep or drop|at least one value)"):
            Filter.model_validate({"field": "label", **options})


def test_rename_also_swaps() -> None:
    rename = Rename(columns={"a": "b", "b": "a"})
    assert rename({"a": 1, "b": 2, "c": 3}) == {"b": 1, "a": 2, "c": 3}
    assert rename.fields_after(("a", "b", "c")) == ("b", "a", "c")
    assert rename.label_names_after({"a": ("x",)}) == {"b": ("x",)}
    with pytest.raises(ConfigError, match="have a field text already"):
        Rename(columns={"body": "text"}).fields_after(("body", "text"))
    with pytest.raises(ConfigError, match='rename: no field "bdy"; did you mean "body"'):
        Rename(columns={"bdy": "text"}).fields_after(("body",))
    with pytest.raises(ValidationError, match="two fields would be named text"):
        Rename(columns={"a": "text", "b": "text"})


def test_every_kind_survives_yaml_values() -> None:
    adapter = TypeAdapter(Annotated[Transform, OneOf(TRANSFORMS)])
    values = {
        "clean_text": {"fields": ["a", "b"], "max_characters": 9, "too_long": "drop"},
        "filter": {"field": "label", "keep": [0, "1", True]},
        "rename": {"columns": {"a": "b"}},
    }
    for kind, options in values.items():
        transform = adapter.validate_python({"kind": kind, **options})
        dumped = adapter.dump_python(transform, mode="json")
        assert dumped["kind"] == kind and adapter.validate_python(dumped) == transform


def test_printable_is_one_safe_line() -> None:
    assert printable("a\x1b[31mred\x1b[0m\nb\x07\u202ec\x1b]0;title\x07d") == "ared b cd"
    assert printable("word " * 50, 20) == "word word word word…" and len(printable("x" * 100, 20)) == 20
    assert printable(None) == "None"
