from __future__ import annotations

import json
import pickle
import sys
from types import ModuleType
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from jaxtune.core.component import COLLECT, Component, OneOf, nearest
from jaxtune.core.errors import ConfigError

TABLE = {"small": "component_test_kinds:Small", "large": "component_test_kinds:Large", "broken": "component_test_kinds:Nothing"}


class Thing(Component):
    """Base of the table."""


class Small(Thing):
    size: int = Field(1, ge=0)


class Large(Thing):
    parts: tuple[Annotated[Thing, OneOf(TABLE)], ...] = ()
    limit: float = 1.0

    @model_validator(mode="after")
    def _check(self) -> Large:
        if self.limit < 0:
            raise ConfigError(["first", "second"])
        return self


class Holder(Component):
    thing: Annotated[Thing, OneOf(TABLE)] = Small()
    things: tuple[Annotated[Thing, OneOf(TABLE)], ...] = ()
    on: bool = False
    ratio: float = 0.5
    share: float | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    inner: Holder | None = None


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("component_test_kinds")
    for name, value in {"Small": Small, "Large": Large, "function": len, "Model": BaseModel}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "component_test_kinds", module)
    for cls in (Small, Large):
        monkeypatch.setattr(cls, "__module__", "component_test_kinds")


def errors(data: dict[str, Any], **options: Any) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate(data, **options)
    return [(item["loc"], item["type"]) for item in caught.value.errors()]


def test_kind_picks_a_class_and_dumping_writes_it_back():
    made = Holder.model_validate({"thing": {"kind": "large", "parts": ["small", {"kind": "small", "size": 3}]}, "things": ["small"]})
    assert made.thing == Large(parts=(Small(), Small(size=3)))
    dumped = made.model_dump()
    assert dumped["thing"] == {"kind": "large", "parts": ({"kind": "small", "size": 1}, {"kind": "small", "size": 3}), "limit": 1.0}
    assert Holder.model_validate(dumped) == made


def test_json_holds_the_kinds_too():
    made = Holder.model_validate({"thing": {"kind": "large", "parts": ["small"], "limit": float("inf")}})
    wanted = {"kind": "large", "parts": [{"kind": "small", "size": 1}], "limit": "Infinity"}
    assert json.loads(made.model_dump_json())["thing"] == wanted
    assert made.model_dump(mode="json")["thing"]["parts"] == wanted["parts"]


def test_dump_without_defaults_keeps_the_kind():
    made = Holder.model_validate({"thing": {"kind": "small", "size": 1}, "things": [{"kind": "small", "size": 2}]})
    assert made.model_dump(exclude_defaults=True) == {"things": ({"kind": "small", "size": 2},)}
    assert made.model_dump(exclude_unset=True)["thing"] == {"kind": "small", "size": 1}


def test_all_errors_at_their_places():
    data = {
        "thing": {"kind": "large", "limit": "x", "parts": [{"kind": "small", "size": -1, "colour": 1}, {"kind": "smal"}]},
        "things": [{"size": 1}, 5, "large", {"kind": "broken"}, {"kind": ["small"]}],
    }
    assert errors(data) == [
        (("thing", "parts", 0, "size"), "greater_than_equal"),
        (("thing", "parts", 0, "colour"), "extra_forbidden"),
        (("thing", "parts", 1), "kind"),
        (("thing", "limit"), "float_type"),
        (("things", 0), "kind"),
        (("things", 1), "kind"),
        (("things", 3), "kind"),
        (("things", 4), "kind"),
    ]


@pytest.mark.parametrize("value", ["yes", "true", 1, 0, "1"])
def test_truth_is_not_guessed(value: Any):
    assert errors({"on": value}) == [(("on",), "bool_type")]


@pytest.mark.parametrize("value", ["0.5", True, "1e-5"])
def test_numbers_are_not_guessed(value: Any):
    assert errors({"ratio": value}) == [(("ratio",), "float_type")]
    assert errors({"share": value}) == [(("share",), "float_type")]
    assert errors({"thing": {"kind": "small", "size": value}}) == [(("thing", "size"), "int_type")]


def test_whole_numbers_are_numbers_and_lists_are_tuples():
    made = Holder.model_validate({"ratio": 1, "things": []})
    assert (made.ratio, made.things) == (1.0, ())
    with pytest.raises(ValidationError):
        Small.model_validate({"size": 2.0})


def test_strictness_stops_at_other_models():
    class Loose(BaseModel):
        count: int

    class Strict(Component):
        loose: Loose
        count: int

    assert Loose(count="3").count == 3  # type: ignore[arg-type]
    assert Strict.model_validate({"loose": {"count": "3"}, "count": 1}).loose.count == 3


def test_config_error_of_a_validator_escapes_from_python_and_is_collected_when_read():
    with pytest.raises(ConfigError, match="first\nsecond"):
        Large(limit=-1.0)
    data = {"things": ["small", {"kind": "large", "limit": -1.0}], "inner": {"inner": {"thing": {"kind": "large", "limit": -2.0}}}, "on": 3}
    with pytest.raises(ConfigError):
        Holder.model_validate(data)
    assert errors(data, context=COLLECT) == [
        (("things", 1), "config"),
        (("things", 1), "config"),
        (("on",), "bool_type"),
        (("inner", "inner", "thing"), "config"),
        (("inner", "inner", "thing"), "config"),
    ]


def test_frozen_equal_hashable_picklable():
    one, two = (Holder.model_validate({"extra": {"a": [1, {"b": 2}]}, "things": ["small"]}) for _ in range(2))
    assert one == two and hash(one) == hash(two) and one is not two
    assert one != Holder() and pickle.loads(pickle.dumps(Holder(ratio=0.25))) == Holder(ratio=0.25)
    with pytest.raises(ValidationError):
        one.ratio = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Small2", 'unknown kind "Small2"; did you mean "small"? (known: broken, large, small)'),
        ("zzz", 'unknown kind "zzz" (known: broken, large, small)'),
        ("no_such_module_x:Y", "kind no_such_module_x:Y: no module named no_such_module_x"),
        ("component_test_kinds:Gone", "kind component_test_kinds:Gone: component_test_kinds has no Gone"),
        ("component_test_kinds:function", "kind component_test_kinds:function is not a jaxtune Component"),
        ("component_test_kinds:Model", "kind component_test_kinds:Model is not a jaxtune Component"),
        ("..up:Y", "kind ..up:Y: the 'package' argument is required to perform a relative import for '..up'"),
    ],
)
def test_unknown_kinds(kind: str, message: str):
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"thing": kind})
    assert caught.value.errors()[0]["msg"] == message


def test_kind_of_another_word_is_named():
    with pytest.raises(ValidationError, match='"kind" is missing; write it instead of "type"'):
        Holder.model_validate({"thing": {"type": "small"}})


def test_component_of_the_wrong_sort_is_refused():
    assert errors({"thing": {"kind": "jaxtune.core.component:Component"}}) == [(("thing",), "is_instance_of")]


def test_class_outside_the_table_round_trips_by_its_place():
    made = Holder.model_validate({"thing": "component_test_kinds:Small"})
    assert made.model_dump()["thing"]["kind"] == "small"
    short = OneOf({})
    assert short.kind(Small()) == "component_test_kinds:Small"


def test_nearest_ignores_case_and_dashes():
    assert nearest("AdamW", ["adamw", "sgd"]) == '; did you mean "adamw"?'
    assert nearest("num-steps", ["num_steps"]) == '; did you mean "num_steps"?'
    assert nearest("zebra", ["adamw", "sgd"]) == ""
