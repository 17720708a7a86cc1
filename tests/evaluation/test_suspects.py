"""Confident learning: the counts by a slow reading of the paper, planted wrong labels found, clean labels left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxtune.evaluation.predictions import write_table
from jaxtune.evaluation.probe import out_of_fold
from jaxtune.evaluation.suspects import (
    CLEAR,
    FILE,
    are_clear,
    calibrated_joint,
    confident_joint,
    find_suspects,
    read_suspects,
    suspects_table,
)


def counted_slowly(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Northcutt et al. (2021), equations 1 and 2, one row at a time."""
    classes = p.shape[1]
    limits = [np.mean([p[k, j] for k in range(len(labels)) if labels[k] == j]) for j in range(classes)]
    counts = np.zeros((classes, classes), int)
    for k, i in enumerate(labels):
        above = [j for j in range(classes) if p[k, j] >= limits[j]]
        if above:
            counts[i, max(above, key=lambda j: p[k, j])] += 1
    return counts


def made(apart: float, share: float, seed: int, n: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, given labels, true labels, flipped)"""
    random = np.random.default_rng(seed)
    centres, true = random.normal(size=(4, 30)) * apart, random.integers(0, 4, n)
    features = centres[true] + random.normal(size=(n, 30))
    flipped = random.random(n) < share
    return features, np.where(flipped, (true + random.integers(1, 4, n)) % 4, true), true, flipped


@pytest.mark.parametrize("seed", range(4))
def test_the_counts_of_the_paper(seed: int) -> None:
    features, given, _, _ = made(0.4, 0.1, seed, n=200)
    p = out_of_fold(features, given, 4).probabilities
    counts = confident_joint(p, given)
    assert (counts == counted_slowly(p, given)).all() and counts.sum() <= 200
    joint = calibrated_joint(p, given)
    np.testing.assert_allclose(joint.sum(1), np.bincount(given))
    found = find_suspects(p, given)
    assert len(found) <= round(joint.sum() - np.trace(joint)) + 6, "not more than the counts say (each cell is rounded)"
    assert found.noise == pytest.approx(1 - np.trace(joint) / 200)


@pytest.mark.parametrize("seed", range(3))
def test_planted_wrong_labels_are_found(seed: int) -> None:
    features, given, true, flipped = made(0.7, 0.06, seed)
    found = find_suspects(out_of_fold(features, given, 4, seed=seed).probabilities, given)
    hits = flipped[found.places]
    assert hits.sum() >= 0.8 * flipped.sum() and hits.mean() >= 0.8
    assert (found.suggested[hits] == true[found.places][hits]).mean() > 0.9
    assert (found.given == given[found.places]).all() and (found.margin > 0).all()
    assert list(found.margin) == sorted(found.margin, reverse=True)
    assert found.noise == pytest.approx(0.06, abs=0.03)


def test_clean_labels_have_few_suspects() -> None:
    features, given, _, _ = made(1.0, 0.0, 0)
    assert len(find_suspects(out_of_fold(features, given, 4).probabilities, given)) <= 5


@pytest.mark.parametrize(("apart", "agreement", "suspected"), [(0.3, 0.71, 0.20), (0.45, 0.86, 0.04), (0.6, 0.95, 0.002)])
def test_where_classes_overlap_right_labels_are_suspected(apart: float, agreement: float, suspected: float) -> None:
    """Why docs/report.md and advice believe suspects only of clear classes, and when they are half of what the probe disagrees with."""
    features, given, _, _ = made(apart, 0.0, 0)
    p = out_of_fold(features, given, 4).probabilities
    agreed, count = float((p.argmax(1) == given).mean()), len(find_suspects(p, given))
    assert agreed == pytest.approx(agreement, abs=0.01) and count / 900 == pytest.approx(suspected, abs=0.01)
    assert not are_clear(count, 900, agreed) or count < 0.5 * (1 - agreed) * 900, (agreed, count)


def test_many_wrong_labels_among_clear_classes_are_told_from_classes_that_overlap() -> None:
    for apart, share, clear in ((1.0, 0.2, True), (0.2, 0.0, False)):
        features, given, _, _ = made(apart, share, 0)
        p = out_of_fold(features, given, 4).probabilities
        agreed = float((p.argmax(1) == given).mean())
        assert agreed < CLEAR and are_clear(len(find_suspects(p, given)), 900, agreed) == clear


def test_a_class_that_is_hard_is_judged_by_its_own_measure() -> None:
    """Rows of class b never get more than 0.4; rows labelled a that look like b are suspects all the same."""
    p = np.array([[0.9, 0.1]] * 20 + [[0.6, 0.4]] * 20 + [[0.55, 0.45]])
    labels = np.array([0] * 20 + [1] * 20 + [0])
    assert confident_joint(p, labels).tolist() == [[20, 1], [0, 20]]


def test_no_confident_row_and_one_class() -> None:
    p = np.array([[0.5, 0.5]] * 6)
    assert len(find_suspects(p, np.array([0, 1] * 3))) == 0
    assert len(find_suspects(np.array([[0.2, 0.8]] * 4), np.zeros(4, int))) == 0, "a class that no row has cannot be suggested"


def test_the_file(tmp_path: Path) -> None:
    assert read_suspects(tmp_path) == []
    features, given, _, _ = made(0.7, 0.06, 0)
    found = find_suspects(out_of_fold(features, given, 4).probabilities, given)
    write_table(tmp_path / "predictions" / FILE, suspects_table(found, np.arange(900) * 2, ["a", "b", "c", "d"]))
    rows = read_suspects(tmp_path)
    assert [row["row"] for row in rows] == (found.places * 2).tolist()
    assert rows[0].keys() == {"row", "label", "suggested", "probability", "margin"} and rows[0]["label"] == "abcd"[found.given[0]]
