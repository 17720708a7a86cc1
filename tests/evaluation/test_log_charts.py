"""What a logarithmic axis can get wrong: ticks, and points in the wrong place."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxtune.evaluation import charts
from jaxtune.evaluation.charts import Line, Mark, Panel
from jaxtune.evaluation.log_charts import log_curves, powers


def test_ticks_are_powers_and_their_multiples() -> None:
    found = powers(math.log10(1e-6), math.log10(1e-1))
    assert [label for _, label, named in found if named] == ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1"]
    assert len(found) == 6 + 5 * 8 and [at for at, _, _ in found] == sorted(at for at, _, _ in found)
    for at, label, _ in found:
        assert 10**at == pytest.approx(float(label))


def test_a_short_axis_has_named_ticks_too() -> None:
    assert [label for _, label, named in powers(math.log10(1.5e-4), math.log10(7e-4)) if named] == ["2e-4", "5e-4"]
    assert len([1 for _, _, named in powers(-20, 20) if named]) <= 9


def test_points_lie_where_their_logarithm_is() -> None:
    """Equal factors, equal distances."""
    line = Line("loss", np.array([1e-5, 1e-4, 1e-3]), np.array([1.0, 2.0, 1.5]), "validation", dots=True)
    drawn = log_curves([Panel("Loss", [line])], [Mark(1e-4, "here", "best")], 600, "text", axis="rate")
    path = re.search(r'class="validation" d="M([\d.]+) [\d.]+L([\d.]+) [\d.]+L([\d.]+) ', drawn)
    assert path is not None
    a, b, c = map(float, path.groups())
    assert c - b == pytest.approx(b - a, abs=0.11) and b - a > 150
    assert [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', drawn)] == pytest.approx([a, b, c], abs=0.11)
    assert f'<line class="best" x1="{b:.1f}"' in drawn and "1e-05: 1" in drawn


@pytest.mark.parametrize("values", [[math.nan, math.nan], [1.0, math.inf], [2.0, 2.0]])
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    line = Line("a <b>", np.array([1e-3, 1e-2]), np.array(values), "raw", dots=True)
    text = charts.alone(log_curves([Panel("T & C", [line, line])], [Mark(1e-2, "x" * 30, "phase")], 300, 'x" onload="y', axis="a & b"))
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == 'x" onload="y' and "nan" not in text and not re.search(r"href|url\(|<script", text)
