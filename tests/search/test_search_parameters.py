"""One searched setting: rounding, grids, narrowing, and what the settings of a search file refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jaxtune.core.errors import ConfigError
from jaxtune.search.parameters import Choice, Float, Int, is_active, label
from jaxtune.search.settings import Search
from jaxtune.search.strategies import Grid

RATE = Float(low=1e-5, high=1e-1, log=True)


def test_numbers_are_rounded_to_four_digits_and_stay_inside() -> None:
    assert RATE.value(0.000123456789) == 0.0001235
    assert Float(low=0.12344, high=1.0).value(0.12344) == 0.12344  # rounded it would lie below low
    assert Int(low=1, high=9).value(7) == 7


def test_a_grid_is_even_on_the_searched_scale() -> None:
    assert RATE.grid(3) == (1e-5, 1e-3, 1e-1)
    assert Float(low=0.0, high=0.5, step=0.25).grid(3) == (0.0, 0.25, 0.5)
    assert Int(low=1, high=4).grid(9) == (1, 2, 3, 4)
    assert Int(low=1, high=100, log=True).grid(3) == (1, 10, 100)
    assert Choice(choices=({"kind": "sgd"}, None)).grid(2) == ({"kind": "sgd"}, None)


def test_narrowing_keeps_a_margin_inside_the_old_range() -> None:
    narrow = RATE.narrowed([1e-3, 2e-3])
    assert narrow.low == pytest.approx(1e-3 * 10**-0.4, rel=1e-3) and narrow.high == pytest.approx(2e-3 * 10**0.4, rel=1e-3)
    assert RATE.narrowed([1e-5, 1e-1]) == RATE
    assert Int(low=0, high=100, step=5).narrowed([50, 55]) == Int(low=40, high=65, step=5)
    assert Float(low=0, high=1, step=0.1).narrowed([0.5]) == Float(low=0.4, high=0.6, step=0.1)
    assert Choice(choices=(1, 2)).narrowed([1]) == Choice(choices=(1, 2))


def test_labels_tell_values_apart() -> None:
    assert len({label(value) for value in (1, 1.0, True, "1", None, [1], {"a": 1})}) == 7
    choice = Choice(choices=(True, 1, {"kind": "sgd", "momentum": 0.9}))
    assert [choice.value(choice.stored(value)) for value in choice.choices] == list(choice.choices)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "float", "low": 1.0, "high": 1.0}, "not below high"),
        ({"kind": "float", "low": 0.0, "high": 1.0, "log": True}, "no logarithm"),
        ({"kind": "int", "low": 1, "high": 8, "log": True, "step": 2}, "do not go together"),
        ({"low": 1, "high": 2}, '"kind" is missing'),
        ([1, 1], "given twice"),
        ([], "at least 1 item"),
    ],
)
def test_a_range_that_cannot_be_is_refused(settings: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Search(name="x", experiment="x.yaml", space={"seed": settings})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"space": {"a": [1], "b": {"kind": "choice", "choices": [1], "when": {"aa": 1}}}}, 'did you mean "a"'),
        ({"space": {"a": [1], "b": {"kind": "choice", "choices": [1], "when": {"a": 2}}}}, "a is never 2"),
        ({"set": {"a": 2}}, "stands in space as well"),
        ({"narrow": {}}, "needs `trials`"),
        ({"narrow": {"rounds": 4}, "trials": 9}, "at least 10 trials"),
        ({"narrow": {}, "trials": 20, "strategy": "grid"}, "leave narrow out"),
        ({"name": "../x"}, "no folder name"),
    ],
)
def test_parts_that_do_not_fit_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Search(**{"name": "x", "experiment": "x.yaml", "space": {"a": [1, 2]}, **more})


def test_keys_that_wait_for_each_other() -> None:
    ring = {key: {"kind": "choice", "choices": [1], "when": {other: 1}} for key, other in (("a", "b"), ("b", "a"))}
    with pytest.raises(ConfigError, match="wait for each other by `when`: a, b"):
        Search(name="x", experiment="x.yaml", space=ring)


def test_a_grid_has_no_row_for_what_is_not_active() -> None:
    search = Search(
        name="x", experiment="x.yaml", strategy="grid",
        space={"a": ["on", "off"], "b": {"kind": "int", "low": 1, "high": 3, "when": {"a": "on"}}},
    )  # fmt: skip
    rows = Grid().rows(search.space, 0)
    assert sorted(rows, key=str) == sorted([{"a": "off"}, *({"a": "on", "b": b} for b in (1, 2, 3))], key=str)
    assert rows != Grid().rows(search.space, 3) or rows != Grid().rows(search.space, 4)  # the order is shuffled
    assert rows == Grid().rows(search.space, 0)


def test_a_grid_that_is_too_large_is_refused() -> None:
    space = {f"k{number}": {"kind": "float", "low": 0.0, "high": 1.0} for number in range(12)}
    search = Search(name="x", experiment="x.yaml", strategy={"kind": "grid", "points": 4}, space=space)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="more than 100,000 settings"):
        search.strategy.rows(search.space, 0)


def test_a_condition_may_name_a_setting_inside_a_chosen_section() -> None:
    only = {"kind": "float", "low": 0.0, "high": 1.0}
    choices = [{"kind": "sgd", "nesterov": True}, {"kind": "adamw"}, "lion"]
    space = {"o": choices, "m": {**only, "when": {"o.kind": ["sgd", "lion"]}}, "n": {**only, "when": {"o.nesterov": True, "m": 0.5}}}
    search = Search(name="x", experiment="x.yaml", space=space)
    active = [[is_active(search.space[key], {"o": choice, "m": 0.5}) for choice in choices] for key in ("m", "n")]
    assert active == [[True, False, True], [True, False, False]] and not is_active(search.space["m"], {})
    with pytest.raises(ConfigError, match=r"o\.kind is never sgdd"):
        Search(name="x", experiment="x.yaml", space={**space, "m": {**only, "when": {"o.kind": "sgdd"}}})
