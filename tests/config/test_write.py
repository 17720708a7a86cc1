from __future__ import annotations

import math
import random
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import yaml
from pydantic import Field
from toy_experiment import GOOD, SCHEDULES, Chain, Constant, Cosine, Schedule, Toy

from jaxtune.config.read import read
from jaxtune.config.write import scalar, to_yaml, write
from jaxtune.config.yaml12 import parse_value
from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError


class Colour(Enum):
    RED = "red"


class Everything(Component):
    number: float = 0.0
    count: int = 0
    text: str = ""
    nothing: int | None = None
    numbers: tuple[float, ...] = ()
    nested: tuple[tuple[int, ...], ...] = ()
    names: frozenset[str] = frozenset()
    table: dict[str, Any] = Field(default_factory=dict)
    path: Path = Path("a/b")
    colour: Colour = Colour.RED
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] | None = None


def again(component: Component, folder: Path) -> Component:
    write(component, folder / "again.yaml")
    return read(folder / "again.yaml", [], type(component))


def test_a_read_experiment_round_trips_in_the_order_of_its_declaration(toy: Any, here: Path):
    made: Toy = toy(GOOD)
    assert again(made, here) == made
    text = to_yaml(made, "one\n\ntwo")
    assert text.startswith("# one\n#\n# two\nname: quick\nseed: 1\nmodel:\n  base: some/model\n")
    assert "    kind: cross_entropy\n    label_smoothing: 0.2\n" in text and "train: [head.*]" in text


@pytest.mark.parametrize(
    "value",
    [
        0.1,
        1e-5,
        5e-324,
        1.7976931348623157e308,
        -2.5e-7,
        1e16,
        1e22,
        123456789.123,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        float(np.float64(1e-3)),
    ],
)
def test_floats_read_back_equal(value: float, tmp_path: Path):
    made = Everything(number=value, numbers=(value,))
    back = again(made, tmp_path)
    assert back == made
    assert math.copysign(1, back.number) == math.copysign(1, value)  # type: ignore[attr-defined]
    if math.isfinite(value):
        assert yaml.safe_load(scalar(value)) == value  # readers of YAML 1.1 understand it too


def test_random_floats_and_texts_read_back_equal():
    dice = random.Random(0)
    for _ in range(2000):
        number = dice.uniform(-1, 1) * 10 ** dice.randint(-300, 300)
        assert parse_value(scalar(number)) == number
        text = "".join(
            dice.choice(" \t\n-:#'\"{}[]&*!|>%@`,?~=<.0123456789eExnul\u00e9\u2028\u0085\\😀\x07") for _ in range(dice.randint(0, 12))
        )
        assert parse_value(scalar(text)) == text, repr(text)
        assert parse_value(to_yaml(Everything(text=text)))["text"] == text


ODD = ["yes", "no", "on", "null", "~", "1e5", "1E-3", "017", "0x1F", "1:30", "1_000", "2024-01-31", ".nan", "<<", "=", "", " ", "!x", "*"]
ODD += ["- a", "a: b", "a #b", "one\ntwo\n", "one\n\n  two", " one\ntwo"]


@pytest.mark.parametrize("text", ODD)
def test_texts_that_look_like_something_else(text: str, tmp_path: Path):
    made = Everything(text=text, table={text: [text], "x": {"y": text}})
    assert again(made, tmp_path) == made
    assert parse_value(scalar(text)) == text and yaml.safe_load(scalar(text)) == text and "\n" not in scalar(text)


def test_everything_at_once(tmp_path: Path):
    made = Everything(
        nested=((1, 2), ()),
        names=frozenset({"b", "a"}),
        table={"a": [1, 2.5, None, True, "x"], "b": {}, "c": {"d": [[1], []]}},
        path=Path("/x y"),
        schedule=Chain(parts=(Constant(rate=1e-3), Chain(parts=(Cosine(peak=1.0), Constant(rate=2.0))))),
    )
    assert again(made, tmp_path) == made
    assert Everything.model_validate(parse_value(to_yaml(Everything()))) == Everything()


def test_numpy_numbers_are_written_as_numbers():
    assert "table:\n  a: 0.5\n  b: [1.0]" in to_yaml(Everything(table={"a": np.float64(0.5), "b": [np.float64(1)]}))


def test_what_yaml_cannot_hold_is_named():
    with pytest.raises(
        ConfigError, match=r"^table\.a\.1: a ndarray cannot be written to YAML; expected numbers, text, lists and sections$"
    ):
        to_yaml(Everything(table={"a": [1, np.zeros(2)]}))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    target = tmp_path / "x.yaml"
    write(Everything(), target)
    before = target.read_text()
    with pytest.raises(ConfigError):
        write(Everything(table={"a": object()}), target)
    assert target.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["x.yaml"]
