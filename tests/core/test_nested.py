"""Dotted keys of nested settings: what is opened, what is one value, and what two of them have differently."""

from __future__ import annotations

from jaxtune.core.nested import differences, leaves

ONE = {"seed": 0, "phases": [{"train": ["*"], "optimizer": {"kind": "adamw", "rate": 1e-3}}], "data": {"widths": [8, 16], "more": {}}}


def test_leaves_are_named_by_dots_and_lists_of_plain_values_are_whole() -> None:
    assert dict(leaves(ONE)) == {
        "seed": 0, "phases.0.train": ["*"], "phases.0.optimizer.kind": "adamw", "phases.0.optimizer.rate": 1e-3,
        "data.widths": [8, 16], "data.more": {},
    }  # fmt: skip


def test_differences_by_key() -> None:
    other = {"seed": 1, "phases": [{"train": ["head.*"], "optimizer": {"kind": "sgd"}}], "data": {"widths": [8], "more": {}}}
    assert differences(ONE, other) == {
        "seed": (0, 1), "phases.0.train": (["*"], ["head.*"]), "phases.0.optimizer.kind": ("adamw", "sgd"),
        "phases.0.optimizer.rate": (1e-3, None), "data.widths": ([8, 16], [8]),
    }  # fmt: skip
    assert differences(ONE, ONE) == {} and differences(3, 4) == {"": (3, 4)}


def test_what_one_of_them_lacks_is_told_whole() -> None:
    rule, phase = {"kind": "plateau"}, {"train": ["*"]}
    assert differences({"phases": [phase]}, {"phases": [phase, phase]}) == {"phases.1": (None, phase)}
    assert differences({"stopping": []}, {"stopping": [rule]}) == {"stopping": ([], [rule])}
    assert differences({"lora": None}, {"lora": {"rank": 8}}) == {"lora": (None, {"rank": 8})}
    assert differences({"x": {"a": 1}}, {"x": [{"a": 1}]}) == {"x": ({"a": 1}, [{"a": 1}])}
