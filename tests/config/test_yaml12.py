from __future__ import annotations

import math
from typing import Any

import pytest
from toy_experiment import blocks

from jaxtune.config.yaml12 import MAX_NODES, Origin, parse, parse_value
from jaxtune.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E3", 1000.0), ("-2.5e+3", -2500.0), (".5", 0.5), ("3.", 3.0), ("-0.0", -0.0),
        (".inf", math.inf), ("-.Inf", -math.inf),
        ("0", 0), ("-17", -17), ("+3", 3), ("123456789012345678901", 123456789012345678901),
        ("true", True), ("False", False), ("TRUE", True),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"), ("tRue", "tRue"),
        ("017", "017"), ("0o17", "0o17"), ("0x1F", "0x1F"), ("1_000", "1_000"), ("1:30", "1:30"), ("00123", "00123"),
        ("190:20:30", "190:20:30"),
        ("01.5", "01.5"), ("1.2.3", "1.2.3"), ("e5", "e5"), ("1e", "1e"), ("inf", "inf"), ("nan", "nan"), ("=", "="),
        ("2024-01-31", "2024-01-31"), ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("~", None), ("null", None), ("", None), ("'null'", "null"), ('"1"', "1"), ("!!str 12", "12"), ("!!float 1", 1.0),
        ("[a, 1, 1e-3]", ["a", 1, 1e-3]), ("{a: {b: [c]}}", {"a": {"b": ["c"]}}), ("{1: a}", {1: "a"}), ("a b: c", {"a b": "c"}),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any):
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_nan_is_the_one_that_equals_itself():
    assert parse_value(".nan") is math.nan


def test_lines_of_keys_and_items():
    data, lines = parse("a: 1\nb:\n  - x\n  - c:\n      d: 2\n", "f.yaml")
    assert data == {"a": 1, "b": ["x", {"c": {"d": 2}}]}
    assert {key: origin.line for key, origin in lines.items()} == {
        ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "c", "d"): 5,
    }  # fmt: skip
    assert str(lines["a",]) == "f.yaml:1" and str(Origin("f.yaml")) == "f.yaml"


def test_anchors_and_merge_keys():
    text = "base: &b {x: 1, y: {z: 2}}\none: {<<: *b, x: 3}\ntwo: {x: 4, <<: [*b, {w: 5}]}\n"
    data, lines = parse(text, "f.yaml")
    assert data["one"] == {"x": 3, "y": {"z": 2}} and data["two"] == {"x": 4, "y": {"z": 2}, "w": 5}
    assert lines["one", "x"].line == 2 and lines["two", "x"].line == 3


CASES = [block.split("\n") for block in blocks("broken_yaml.txt")]


@pytest.mark.parametrize(("text", "messages"), [(case[0], case[1:]) for case in CASES], ids=[case[0] for case in CASES])
def test_refused(text: str, messages: list[str]):
    with pytest.raises(ConfigError) as caught:
        parse(text.removeprefix("! ").replace("\\n", "\n").replace("\\t", "\t"), "f.yaml")
    assert [f"= {problem.removeprefix('f.yaml:')}" for problem in caught.value.problems] == messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b\x07\n", "f.yaml:1: holds the character U+0007, which YAML does not allow"),
        ("a: " + "[" * 20_000, "f.yaml: is nested too deeply to be an experiment"),
    ],
    ids=["control character", "nested"],
)
def test_refused_whole(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value) == message


def test_alias_bomb_is_refused():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match=f"more than {MAX_NODES:,} values"):
        parse("\n".join(rows), "f.yaml")


def test_a_message_about_a_value_names_no_file():
    with pytest.raises(ConfigError) as caught:
        parse_value("[1")
    assert str(caught.value) == "not valid YAML: expected ',' or ']', but got the end"
