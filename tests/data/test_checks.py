"""Checks: every fault is found, named by row and shown safely, and all come in one message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jaxtune.core.errors import DataError
from jaxtune.data.checks import Problem, check_images, check_labels, check_records, check_targets, check_texts, check_weights, stop_on

PARTS = {"train": np.array([0, 1, 2, 3]), "validation": np.array([4]), "test": np.array([5])}


def test_sound_data_pass() -> None:
    columns = {"text": list("abcdef"), "label": ["x", "y", "x", "y", "x", "y"], "score": [0.5, 1, 2, 3, 4, 5]}
    stop_on(check_records(columns, PARTS, texts=["text"], label="label", targets=["score"], label_names=["x", "y"]))
    stop_on(check_labels([["x"], [], ["y", "x"], ["y"], ["x"], []], PARTS))
    stop_on(check_images(lambda row: np.zeros((4 + row, 3, 1), np.uint8), range(3), channels=1))
    stop_on(check_weights(np.ones((4, 3)), range(4)))


def test_all_problems_come_in_one_error() -> None:
    columns = {
        "text": ["a", " \n", None, 7, "b", "c"],
        "label": ["x", "y", "", "x", "Y", "z\x1b[2J"],
        "score": [1.0, None, float("nan"), "many", 2, float("inf")],
    }
    problems = check_records(columns, PARTS, texts=["text"], label="label", targets=["score"])
    with pytest.raises(DataError) as error:
        stop_on(problems)
    lines = str(error.value).splitlines()
    assert len(lines) == 6, lines
    assert 'field "text": 2 empty texts (rows 1, 2); fill them in' in lines[0]
    assert 'field "text": 1 values are no text (int) (row 3), e.g. "7"' in lines[1]
    assert 'field "label": 1 rows without a label (row 2)' in lines[2]
    assert 'label "Y" in validation is not in training; did you mean "y"? (row 4)' in lines[3]
    assert 'label "z" in test is not in training (row 5)' in lines[4]
    assert 'field "score": 4 values are missing or no finite number (rows 1, 2, 3, 5), e.g. "None"' in lines[5]


def test_rows_are_named_as_in_the_source() -> None:
    with pytest.raises(DataError, match=r"2 empty texts \(rows 12, 17\)"):
        stop_on(check_texts(["a", "", ""], range(3)), source_rows=np.array([10, 12, 17]))


def test_only_rows_of_a_split_are_looked_at() -> None:
    columns = {"text": ["a", "", "b"], "label": ["x", None, "y"]}
    assert check_records(columns, {"train": np.array([0, 2])}, texts=["text"], label="label") == []


def test_declared_classes() -> None:
    labels = ["x", "y", "x", "w", "z", "z"]
    found = [str(problem) for problem in check_labels(labels, PARTS, names=["x", "y", "z", "v"])]
    assert len(found) == 2
    assert 'label "w" in train is not in the declared classes' in found[0] and "(row 3)" in found[0]
    assert "2 classes never seen in training: z, v (rows 4, 5)" in found[1]


@pytest.mark.parametrize("labels", [["x"] * 6, [1] * 6])
def test_one_class_is_no_classification(labels: list[Any]) -> None:
    (problem,) = check_labels(labels, PARTS)
    assert "every training row has the same label" in str(problem)


def test_numbers_are_labels_too() -> None:
    (problem,) = check_labels([0, 1, 0, 1, 2, float("nan")], {"train": [0, 1, 2, 3, 5], "test": [4]}, names=None)[1:]
    assert 'label "2" in test is not in training' in str(problem)


def test_targets_may_be_rows_of_numbers() -> None:
    good = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert check_targets(good, range(2)) == []
    good[1, 0] = np.nan
    (problem,) = check_targets(good, range(2))
    assert problem.rows == (1,)
    assert check_targets([[1, 0], None, ["a"]], range(3))[0].rows == (1, 2)


def test_masked_targets() -> None:
    (some,) = check_weights([[1, 0], [0, 0], [0, 1]], range(3))
    assert some.rows == (1,)
    (every,) = check_weights(np.zeros(3), range(3))
    assert "all 3 rows have every target masked" in str(every)


def test_images() -> None:
    def image(row: int) -> np.ndarray:
        if row == 1:
            raise DataError("a/1.png: cannot be decoded")
        shapes = {2: (4, 4), 3: (4, 4, 1), 4: (4, 4, 3), 5: (0, 4, 3)}
        values = np.zeros(shapes.get(row, (4, 4, 3)), np.float32 if row == 4 else np.uint8)
        return values + np.float32(np.nan) if row == 4 else values

    found = [str(problem) for problem in check_images(image, range(6))]
    assert "1 images cannot be read (first: a/1.png: cannot be decoded) (row 1)" in found[0]
    assert "3 images are not [height, width, 3] (first: (4, 4)) (rows 2, 3, 5)" in found[1]
    assert "1 images hold NaN or infinite pixels (row 4)" in found[2]
    assert check_images(image, [0, 3], channels=1)[0].rows == (0,)


def test_many_rows_and_long_samples_are_shortened() -> None:
    text = str(Problem("found", "do", tuple(range(25)), "word " * 100))
    assert "(rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 15 more)" in text and len(text) < 160
    assert len(check_texts([""] * 1000, range(1000))) == 1
    assert len(check_labels([str(row) for row in range(100)], {"train": [0, 1], "test": range(2, 100)})) <= 10
