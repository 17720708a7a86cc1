"""Charts and page of made-up trials: every trial is drawn, nothing from outside is markup, and the page is whole at every stage."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from jaxtune.evaluation import charts
from jaxtune.search.ledger import Record, pasts, ranked
from jaxtune.search.page import tiles, verdict
from jaxtune.search.parameters import Choice, Float, Int
from jaxtune.search.plots import clipped, history, parallel
from jaxtune.search.results import Found, finalists_of
from jaxtune.search.settings import Search

PARAMETERS: dict[str, Any] = {
    "a.rate": Float(low=1e-5, high=1e-1, log=True),
    "b.<i>size</i>": Int(low=1, high=64),
    "c.kind": Choice(choices=("<script>alert(1)</script>", {"kind": "sgd"}, None)),
    "d.extra": Float(low=0, high=1, when={"c.kind": None}),
}


def made(number: int, value: float | None, state: Any = "complete", **settings: Any) -> Record:
    chosen = {"a.rate": 1e-3, "b.<i>size</i>": 1 + number, "c.kind": "<script>alert(1)</script>", **settings}
    curve = {} if value is None else {10: value - 0.1, 20: value}
    return Record(number, state, chosen, value, curve, None, {"steps": 20, "seconds": 1.5, "reason": "because"})


RECORDS = [
    made(0, 0.5),
    made(1, 0.9, **{"c.kind": None, "d.extra": 0.25}),
    made(2, 0.7, "stopped"),
    made(3, None, "failed"),
    made(4, 0.8, **{"c.kind": {"kind": "sgd"}}),
    made(5, -1e9),
]


def test_every_trial_with_a_value_is_drawn() -> None:
    drawing = str(history(RECORDS, "F1", True, 860))
    assert drawing.count("<circle") == 5 and "the best value is 0.9" in drawing
    assert drawing.count('class="point"') == 1  # the stopped one is pale
    lines = str(parallel(RECORDS, list(PARAMETERS), {key: key for key in PARAMETERS}, PARAMETERS, "F1", True, 860))
    assert lines.count("<polyline") == 5 and "trial 1: 0.9" in lines
    for text in (drawing, lines):
        assert "<script" not in text and "<i>" not in text
        ElementTree.fromstring(charts.alone(charts.Markup(text)))


def test_the_best_line_never_falls() -> None:
    drawing = str(history(RECORDS, "F1", True, 860))
    points = re.search(r'<polyline class="validation" points="([^"]*)"', drawing)
    assert points is not None
    heights = [float(point.split(",")[1]) for point in points[1].split()]
    assert heights == sorted(heights, reverse=True)  # pixels count downwards
    lowest = str(history([made(0, 0.5), made(1, 0.2), made(2, 0.3)], "loss", False, 860))
    assert "the best value is 0.2" in lowest


def test_an_axis_ends_where_the_range_ends() -> None:
    lines = str(parallel(RECORDS[:2], ["a.rate"], {"a.rate": "rate"}, PARAMETERS, "F1", True, 860))
    points = re.findall(r'points="([\d.]+),([\d.]+) ', lines)
    assert {float(y) for _, y in points} == {40 + 250 / 2}  # 1e-3 lies in the middle of 1e-5 to 1e-1
    assert "1e-05" in lines and "0.1" in lines


def test_outliers_do_not_press_the_others_together() -> None:
    import numpy as np

    assert clipped(np.array([0.9, 0.8, 0.7, -1e9]), True).min() > -1
    assert clipped(np.array([0.1, 0.2, 0.3, 1e9]), False).max() < 2


def test_who_trained_to_the_end_comes_before_who_was_stopped() -> None:
    assert [record.number for record in ranked(RECORDS, True)] == [1, 4, 0, 5, 2]
    assert [record.number for record in ranked(RECORDS, False)] == [5, 0, 4, 1, 2]
    assert [past.number for past in pasts(RECORDS)] == [0, 1, 2, 4, 5]


def test_finalists_by_their_mean_over_other_seeds() -> None:
    order = ranked(RECORDS, True)
    rows = [
        {"trial": 1, "seed": 1, "value": 0.6}, {"trial": 1, "seed": 2, "value": 0.7},
        {"trial": 4, "seed": 1, "value": 0.8}, {"trial": 4, "seed": 2, "value": 0.7},
        {"trial": 0, "seed": 1, "value": 0.99}, {"trial": 0, "seed": 2, "value": None},
    ]  # fmt: skip
    found = finalists_of(order, rows, True)
    assert [(one.record.number, one.failed) for one in found] == [(4, 0), (1, 0), (0, 1)]
    assert found[0].to_json() == {
        "trial": 4, "first": 0.8, "values": [0.8, 0.7], "failed": 0, "mean": pytest.approx(0.75), "least": 0.7, "greatest": 0.8
    }  # fmt: skip


def test_a_winner_whose_repeats_all_failed_is_told_without_them() -> None:
    order = ranked(RECORDS, True)
    repeats = [{"trial": record.number, "seed": 1, "value": None} for record in order[:2]]
    found = Found(tuple(RECORDS), tuple(order), tuple(finalists_of(order, repeats, True)), order[0], {}, tuple(repeats))
    search = Search(name="s", experiment="x.yaml", space={"a.rate": [1]})  # type: ignore[arg-type]
    space: Any = SimpleNamespace(file="x.yaml", metric="f1", higher_is_better=True)
    numbers = found.numbers(search, space, 6, "done")
    assert "repeats" not in numbers["winner"] and [one["failed"] for one in numbers["finalists"]] == [1, 1]
    assert verdict(numbers, "F1")[0] == "Trial 1 is the best: F1 0.900 on validation."


def test_sentences() -> None:
    numbers = {
        "trials": {"wanted": 9, "complete": 4, "stopped": 2, "failed": 1, "running": 0}, "winner": None, "steps": 1234, "compilations": 1,
        "seconds": 75.0, "finalist_steps": 0,
    }  # fmt: skip
    assert verdict(numbers, "F1") == [
        "7 of 9 settings were tried in 1,234 optimizer steps, with 1 compilation.",
        "None has trained to its end yet.",
    ]
    numbers["winner"] = {
        "trial": 3, "value": 0.912, "settings": {}, "repeats": {"values": [0.9, 0.91], "mean": 0.905, "least": 0.9, "greatest": 0.91}
    }  # fmt: skip
    assert verdict(numbers, "F1")[0] == (
        "Trial 3 is the best: F1 0.905 on average over 2 other seeds (0.900 to 0.910), 0.912 when it was found."
    )
    assert tiles(numbers, "F1")[:2] == [
        ("F1", "0.905", "mean of 2 other seeds, trial 3"),
        ("trials", "7", "4 complete, 2 stopped, 1 failed"),
    ]
