"""The parts of the charts that can be wrong without looking wrong: ticks, smoothing, thinning, gaps; and that files are whole XML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxtune.evaluation import charts
from jaxtune.evaluation.analysis import reliability


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.93, 1.61, 4, ["1.0", "1.2", "1.4", "1.6"]),
        (0.0, 5.3e-4, 3, ["0", "2e-4", "4e-4"]),
        (-3.0, 3.0, 4, ["-2", "0", "2"]),
        (0.0, 12_345.0, 3, ["0", "5,000", "10,000"]),
        (0.0, 2e6, 4, ["0", "5e5", "1e6", "1.5e6", "2e6"]),
    ],
)
def test_ticks_are_round_numbers_with_as_many_decimals(low: float, high: float, count: int, expected: list[str]) -> None:
    assert [text for _, text in charts.labelled(low, high, count)] == expected


def test_ticks_of_steps_are_whole() -> None:
    assert [value for value, _ in charts.labelled(0, 2, 5, whole=True)] == [0, 1, 2]


def test_smoothing_keeps_a_constant_and_leaves_gaps() -> None:
    np.testing.assert_allclose(charts.smooth(np.full(50, 2.5), 7.0), 2.5)
    found = charts.smooth(np.array([1.0, math.nan, 3.0]), 5.0)
    assert math.isnan(found[1]) and found[0] == 1.0 and 1.0 < found[2] < 3.0


def test_thinning_keeps_spikes() -> None:
    y = np.zeros(10_000)
    y[[123, 9_999]] = 5.0, -5.0
    x, thin = charts.thin(np.arange(10_000.0), y, 400)
    assert len(x) <= 400 and thin.max() == 5.0 and thin.min() == -5.0 and (np.diff(x) > 0).all()


def test_a_gap_breaks_the_line() -> None:
    line = charts.Line("loss", np.arange(5.0), np.array([1.0, 2.0, math.nan, 3.0, 4.0]), "train")
    drawn = charts.curves([charts.Panel("Loss", [line])], [], 400, "text")
    path = re.search(r' d="([^"]+)"', drawn)
    assert path and path[1].count("M") == 2 and path[1].count("L") == 2
    assert "nan" not in drawn


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [2.0, 2.0], [1e12, -1e12], [math.inf, 1.0]])
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    y = np.array(values)
    line = charts.Line("a <b>", np.arange(float(len(y))), y, "validation", dots=True)
    drawn = charts.curves([charts.Panel("T & C", [line, line])], [charts.Mark(1, "best", "best")], 300, 'x" onload="y')
    root = ElementTree.fromstring(charts.alone(drawn))
    assert root.attrib["aria-label"] == 'x" onload="y' and "onload" not in root.attrib
    assert not re.search(r'"(nan|inf|-inf)"', drawn)


def test_every_chart_is_whole_xml_without_references() -> None:
    random = np.random.default_rng(0)
    x = random.random(3000)
    for drawn in (
        charts.reliability_diagram(reliability(x, x > 0.4), 420, "r"),
        charts.scatter(x, x + 0.1, 340, "s"),
        charts.histogram(x - 0.5, 340, "h", axis="error"),
        charts.sparkline(x[:9], "sparks"),
    ):
        text = charts.alone(drawn)
        ElementTree.fromstring(text)
        assert not re.search(r"href|url\(|<script|https?://(?!www\.w3\.org/2000/svg)", text)


def test_a_scatter_of_very_many_points_stays_small() -> None:
    x = np.random.default_rng(0).random(100_000)
    assert charts.scatter(x, x, 400, "").count("<circle") == 1500
