from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from jaxtune.evaluation.bootstrap import Interval
from jaxtune.evaluation.charts import alone
from jaxtune.selection.choose_chart import Point, pareto_front, round_costs, score_against_cost, short_names


def point(name: str, cost: float, score: float, random: bool = False) -> Point:
    return Point(name, cost, score, Interval(score - 0.02, score + 0.02), random)


def test_the_front_holds_what_nothing_beats():
    found = pareto_front(
        [point("big", 10, 0.9), point("small", 1, 0.7), point("poor", 5, 0.6), point("same cost", 10, 0.8), point("tie", 20, 0.9)]
    )
    assert [each.name for each in found] == ["small", "big"]


def test_the_front_is_what_the_definition_says():
    random = np.random.default_rng(0)
    points = [point(str(i), *random.integers(1, 12, 2).astype(float)) for i in range(60)]

    def beaten(a: Point) -> bool:
        return any((b.cost <= a.cost and b.score > a.score) or (b.cost < a.cost and b.score >= a.score) for b in points)

    front = {(each.cost, each.score) for each in pareto_front(points)}
    assert front == {(each.cost, each.score) for each in points if not beaten(each)}


@pytest.mark.parametrize("width", [860, 420])
def test_the_chart_is_whole_xml_with_every_candidate_and_no_markup_of_theirs(width: int):
    points = [point("<b>&minilm", 0.5, 0.93), point("random:minilm", 0.5, 0.4, True), point("a" * 90, 40.0, 0.95)]
    text = alone(score_against_cost(points, width, measure="accuracy", cost="GFLOP per training example"))
    drawing = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(drawing.iter(f"{space}circle"))) == 3
    assert sum(each.get("class") == "best-dot" for each in drawing.iter(f"{space}circle")) == 2
    said = drawing.get("aria-label") or ""
    assert "<b>&minilm 0.930" in said and said.endswith(f"Pareto front: <b>&minilm, {'a' * 90}.")
    for shape in drawing.iter(f"{space}text"):
        start, length = float(shape.get("x") or 0), 6.3 * len(shape.text or "")
        left = start - {"start": 0.0, "middle": 0.5, "end": 1.0}[shape.get("text-anchor") or "start"] * length
        assert left >= -1 and left + length <= width + 1, shape.text
    assert drawing.find(f".//{space}b") is None


def test_names_do_not_stand_on_each_other():
    points = [point(f"candidate {i}", 1.0, 0.9 + 0.001 * i) for i in range(4)]
    drawing = ElementTree.fromstring(alone(score_against_cost(points, 700, measure="accuracy", cost="GFLOP")))
    lines = [float(t.get("y") or 0) for t in drawing.iter("{http://www.w3.org/2000/svg}text") if (t.text or "").startswith("candidate")]
    assert len(lines) == 4 and min(b - a for a, b in zip(sorted(lines), sorted(lines)[1:], strict=False)) >= 12.9


def test_labels_leave_out_what_tells_nothing_apart():
    names = ["google-bert/bert-base-uncased", "random:google-bert/bert-base-uncased", "package://minilm/model", "runs/a/export"]
    assert list(short_names(names).values()) == ["bert-base-uncased", "random:bert-base-uncased", "package://minilm/model", "export"]
    assert short_names(["runs/a/export", "runs/b/export"]) == {"runs/a/export": "runs/a/export", "runs/b/export": "runs/b/export"}


def test_a_single_candidate_has_an_axis_too():
    assert "best-dot" in score_against_cost([point("only", 3.0, 1.0)], 700, measure="accuracy", cost="GFLOP")


def test_costs_are_round():
    assert [text for _, text in round_costs(0.3, 6)] == ["0.5", "1", "2", "5"]
    assert [value for value, _ in round_costs(1, 1e5)] == [1, 10, 100, 1000, 10000, 100000]
