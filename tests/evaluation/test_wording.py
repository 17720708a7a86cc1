"""Numbers as words."""

from __future__ import annotations

import math

import pytest

from jaxtune.evaluation import wording


def plain(text: str) -> str:
    return text.replace(wording.NO_BREAK, " ")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.91779, "0.918"), (0.0, "0.000"), (1.0, "1.000"), (0.00123, "0.0012"), (27.2981, "27.298"), (12345.678, "12,345.7"), (3.2e9, "3.2e+09"), (math.nan, "not defined"), (-math.inf, "-infinite")],
)  # fmt: skip
def test_values(number: float, text: str) -> None:
    assert wording.value(number) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.163, "16.3 %"), (8.47e-5, "0.0085 %"), (0.0651, "6.5 %"), (0.99999, "> 99.9 %"), (1e-9, "< 0.0001 %")]
)  # fmt: skip
def test_shares(share: float, text: str) -> None:
    assert plain(wording.percent(share)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (22_715_141, "22.7 M"),
        (9876, "9,876"),
        (12_345, "12.3 k"),
        (7.24e9, "7.24 G"),
        (10.56, "10.6"),
        (999_999, "1 M"),
        (3.2e12, "3,200 G"),
        (0.034, "0.034"),
    ],
)
def test_counts(number: float, text: str) -> None:
    assert plain(wording.count(number)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.97, "10 s"), (47.4, "47 s"), (59.6, "1 min"), (181, "3 min 1 s"), (3599.7, "1 h"), (4_340, "1 h 12 min")]
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert plain(wording.duration(seconds)) == text
