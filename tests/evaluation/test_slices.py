"""Slices: measured like statsmodels-free textbook formulas say, a planted weak part is found and stands out, chance parts do not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from jaxtune.core.errors import DataError
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.record_columns import record_columns
from jaxtune.evaluation.slices import CLASS, LENGTH, Part, found_parts, measure, own_columns, quartiles, scores, table, usual_parts


def outcomes(right: np.ndarray, tokens: np.ndarray | None = None, seed: int = 0) -> Outcomes:
    """Three classes; `right` decides whether the answer is."""
    truth = np.random.default_rng(seed).integers(0, 3, len(right))
    predicted = np.where(right, truth, (truth + 1) % 3)
    p = np.eye(3)[predicted] * 0.7 + 0.1
    return Outcomes(
        "single_label", ("a", "b", "c"), np.arange(len(right)), truth, predicted, p, -np.log(p[np.arange(len(p)), truth]), tokens
    )


def newcombe(a: int, m: int, b: int, n: int) -> tuple[float, float]:
    """95 % interval of a/m - b/n as Newcombe (1998) prints it, method 10."""
    z = 1.96

    def bounds(hits: int, count: int) -> tuple[float, float]:
        root = z * math.sqrt(z * z + 4 * hits * (1 - hits / count))
        return (2 * hits + z * z - root) / (2 * (count + z * z)), (2 * hits + z * z + root) / (2 * (count + z * z))

    (l1, u1), (l2, u2), d = bounds(a, m), bounds(b, n), a / m - b / n
    return d - math.sqrt((a / m - l1) ** 2 + (u2 - b / n) ** 2), d + math.sqrt((u1 - a / m) ** 2 + (b / n - l2) ** 2)


def test_size_score_and_distance_by_the_textbook() -> None:
    values = np.array([1.0] * 56 + [0.0] * 14 + [1.0] * 48 + [0.0] * 32)  # Newcombe's example: 56/70 and 48/80
    mask = np.arange(150) < 70
    (one,) = measure([Part("column", "x", mask)], values, shares=True)
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4), "as printed in the paper"
    low, high = newcombe(56, 70, 48, 80)
    assert (one.size, one.score) == (70, 0.8)
    assert one.gap == pytest.approx(0.8 - 104 / 150) and (one.gap_low, one.gap_high) == pytest.approx((low * 80 / 150, high * 80 / 150))
    assert one.low < 0.8 < one.high and one.stands_out


def test_many_looks_widen_what_it_takes_to_stand_out() -> None:
    values = np.array([1.0] * 56 + [0.0] * 14 + [1.0] * 48 + [0.0] * 32)
    parts = [Part("column", "x", np.arange(150) < 70)] + [Part("column", str(i), np.arange(150) % 2 == i % 2) for i in range(40)]
    measured = measure(parts, values, shares=True)
    assert measured[0].gap_low > 0 and not measured[0].stands_out


@pytest.mark.parametrize("seed", range(3))
def test_chance_does_not_stand_out_and_a_planted_part_does(seed: int) -> None:
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 400, 1200)
    kind = np.array(["web", "mail", "scan"], object)[random.integers(0, 3, 1200)]
    weak = (tokens > 250) & (kind == "scan")
    chance = random.random(1200) < 0.9
    right = np.where(weak, random.random(1200) < 0.4, chance)
    for values, wanted in ((chance, False), (right, True)):
        half = [outcomes(values[part], tokens[part]) for part in (slice(0, 600), slice(600, 1200))]
        columns = [own_columns(part) | {"kind": kind[start : start + 600]} for part, start in zip(half, (0, 600), strict=True)]
        parts = found_parts(columns[0], scores(half[0]), columns[1])
        parts += usual_parts(columns[1], quartiles(columns[0]))
        measured = measure(parts, scores(half[1]), shares=True)
        assert any(one.stands_out for one in measured) == wanted, [one for one in measured if one.stands_out]
        if wanted:
            worst = min((one for one in measured if one.by == "found"), key=lambda one: one.gap)
            assert "kind “scan”" in worst.name and LENGTH + " above" in worst.name and worst.stands_out


def test_quarters_cover_everything_once() -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 1000, 300).astype(np.float64)
    numbers[:7] = np.nan
    parts = usual_parts({"n": numbers}, quartiles({"n": numbers}))
    assert len(parts) == 4 and sum(part.mask.astype(int) for part in parts).tolist() == [0] * 7 + [1] * 293
    assert all(60 <= part.mask.sum() <= 85 for part in parts)
    assert parts[0].name.startswith("at most ") and parts[-1].name.startswith("above ")
    assert usual_parts({"n": np.full(9, 3.0)}, quartiles({"n": np.full(9, 3.0)})) == []
    assert [part.name for part in usual_parts({"n": np.array([1.0, 2.0] * 9)}, quartiles({"n": np.array([1.0, 2.0] * 9)}))] == [
        "at most 1",
        "above 1",
    ]


def test_scores_of_every_problem() -> None:
    assert scores(outcomes(np.array([True, False, True]))).tolist() == [1, 0, 1]
    both = np.array([[True, False], [True, True]])
    several = Outcomes("multi_label", ("a", "b"), np.arange(2), both, both ^ [[False, False], [False, True]], both * 1.0, np.zeros(2))
    assert scores(several).tolist() == [1, 0] and CLASS not in own_columns(several)
    number = Outcomes("regression", (), np.arange(2), np.array([1.0, 2.0]), np.array([1.5, 0.0]), np.empty((2, 0)), np.zeros(2))
    assert scores(number).tolist() == [0.5, 2.0]
    (one,) = measure([Part("x", "y", np.array([True, False]))], scores(number), shares=False)
    assert one.score == 0.5 and not one.stands_out, "one example has no interval to speak of"


def test_the_table_of_an_evaluation() -> None:
    tokens = np.arange(120) + 20
    told = table(outcomes(np.arange(120) % 4 > 0, tokens))
    assert [row["name"] for row in told if row["by"] == CLASS] == ["a", "b", "c"]
    lengths = [row for row in told if row["by"] == LENGTH]
    assert len(lengths) == 4 and sum(row["size"] for row in lengths) == 120
    assert lengths[0] == {"by": LENGTH, "name": "at most 49", "size": 30, "score": pytest.approx(22 / 30), "loss": lengths[0]["loss"]}


# -- columns of the records -------------------------------------------------------------------------------------------------


class Rows:
    def __init__(self, **columns: Any):
        self.columns = columns

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {name: value(row) for name, value in self.columns.items()}


def test_columns_of_use_are_taken_and_made_printable() -> None:
    records: Any = Rows(
        text=lambda i: f"text {i % 3}", label=lambda i: "x", path=lambda i: f"{i}.txt", year=lambda i: 2000 + i % 7, missing=lambda i: None if i % 2 else 1.5 * i,
        source=lambda i: "\x1b[31mmail" if i % 3 else "web", same=lambda i: 1, spoken=lambda i: i % 2 == 0, listed=lambda i: ["a"],
    )  # fmt: skip
    columns, why = record_columns(records, np.arange(60), {"text": "text", "label": "label"})
    assert why == "" and columns.keys() == {"year", "missing", "source", "spoken"}
    assert set(columns["source"]) == {"mail", "web"} and set(columns["spoken"]) == {"True", "False"}
    assert np.isnan(columns["missing"][1]) and columns["year"].dtype == np.float64


def test_images_have_looks() -> None:
    records: Any = Rows(image=lambda i: np.full((8 + i % 2, 6, 3), i, np.uint8), label=lambda i: "x")
    columns, _ = record_columns(records, np.arange(20), {"image": "image", "label": "label"})
    assert columns.keys() == {"brightness", "height"} and columns["brightness"].tolist() == list(range(20))


def test_records_that_are_gone_or_too_many() -> None:
    def gone(row: int) -> Any:
        raise DataError("the file is missing")

    assert record_columns(None, np.arange(3), {}) == ({}, "the records were not at hand")
    assert record_columns(Rows(a=gone), np.arange(3), {}) == ({}, "the file is missing")  # type: ignore[arg-type]
    assert "more than 20,000" in record_columns(Rows(a=gone), np.arange(30_000), {})[1]  # type: ignore[arg-type]
