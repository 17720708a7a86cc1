"""The checks at the end of a run: what they write, what they leave out and why, and that trouble is noted and not raised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtune.core.errors import DataError
from jaxtune.evaluation.data_checks import check_labels, check_near_duplicates, read_pairs
from jaxtune.evaluation.features import FeatureTable
from jaxtune.evaluation.suspects import read_suspects

NAMES = ("a", "b", "c")


def labelled(n: int = 300, flipped: int = 15) -> tuple[list[str], np.ndarray, set[int]]:
    """(labels of 2 n records, features of the even ones, which of those have a wrong label)"""
    random = np.random.default_rng(0)
    true = random.integers(0, 3, 2 * n)
    wrong = set((random.choice(n, flipped, replace=False) * 2).tolist())
    labels = [NAMES[(t + 1) % 3] if row in wrong else NAMES[t] for row, t in enumerate(true.tolist())]
    return labels, np.eye(3)[true[::2]] * 6 + random.normal(size=(n, 3)), wrong


def look(folder: Path, **changes: Any) -> dict[str, Any]:
    labels, features, _ = labelled()
    rows = np.arange(0, 600, 2)
    given: dict[str, Any] = {
        "problem": "single_label", "names": NAMES, "labels": labels, "keys": [str(i) for i in range(600)], "rows": rows,
        "features": lambda: FeatureTable(rows, features),
    }  # fmt: skip
    return check_labels(folder, **(given | changes))


def test_suspects_are_named_by_record(tmp_path: Path) -> None:
    told = look(tmp_path)
    wrong, found = labelled()[2], read_suspects(tmp_path)
    assert (told["state"], told["rows"], told["suspects"]) == ("done", 300, len(found)) and told["seconds"] > 0
    assert (
        len(wrong - {row["row"] for row in found}) <= 1 and len(found) <= len(wrong) + 2 and told["noise"] == pytest.approx(0.05, abs=0.02)
    )
    assert all(labelled()[0][row["row"]] == row["label"] != row["suggested"] for row in found)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"problem": "regression"}, "only tasks with one class per example are looked at"),
        ({"rows": np.arange(20_001)}, "the training split has 20,001 rows; at most 20,000 are looked at"),
        ({"unless": "the base is new"}, "the base is new"),
    ],
)
def test_left_out_with_a_reason_and_without_any_work(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    look(tmp_path)
    told = look(tmp_path, features=lambda: pytest.fail("called"), **changes)
    assert told == {"state": "left out", "why": why}
    assert read_suspects(tmp_path) == [], "nothing of an earlier start stays"


def test_classes_that_are_too_rare_are_not_judged(tmp_path: Path) -> None:
    labels = labelled()[0]
    labels[0] = labels[2] = "rare"
    told = look(tmp_path, labels=labels, names=(*NAMES, "rare"))
    assert told["not_judged"] == 2 and told["rows"] == 298 and not {0, 2} & {row["row"] for row in read_suspects(tmp_path)}
    assert look(tmp_path, labels=["a"] * 600)["why"] == "fewer than two classes have 5 training rows"


def test_trouble_is_noted(tmp_path: Path) -> None:
    for error in (DataError("a file is gone"), MemoryError("the device is full")):

        def broken(error: BaseException = error) -> FeatureTable:
            raise error

        told = look(tmp_path, features=broken)
        assert (told["state"], told["why"]) == ("failed", f"{type(error).__name__}: {error}")


# -- near copies ------------------------------------------------------------------------------------------------------------

TEXTS = [" ".join(f"w{(i * 37 + k * (i + 3)) % 997}" for k in range(40)) for i in range(30)]
COPIES = {20: 3, 25: 4}  # test row, validation row -> training row


class Records:
    def __init__(self, domain: str):
        self.domain = domain

    def __getitem__(self, row: int) -> dict[str, Any]:
        source = COPIES.get(row, row)
        if self.domain == "image":
            pixels = np.kron(np.random.default_rng(source).integers(0, 255, (6, 6)), np.ones((8, 8)))
            return {"image": (pixels + (row != source)).astype(np.uint8)}
        return {"text": TEXTS[source] + (" more" if row != source else ""), "pair": None}


@pytest.mark.parametrize(("domain", "content"), [("text", ("text",)), ("text", ("text", "pair")), ("image", ("image",))])
def test_near_copies_are_named_by_record_with_the_held_out_one_first(domain: str, content: tuple[str, ...], tmp_path: Path) -> None:
    splits = {"train": np.arange(20), "validation": np.arange(25, 30), "test": np.arange(20, 25)}
    told = check_near_duplicates(tmp_path, domain, content, Records(domain), splits)  # type: ignore[arg-type]
    assert (told["state"], told["rows"], told["pairs"]) == ("done", 30, 2)
    assert told["near_training"] == {"validation": 1, "test": 1}
    found = {(pair["row"], pair["split"], pair["other_row"], pair["other_split"]) for pair in read_pairs(tmp_path)}
    assert found == {(20, "test", 3, "train"), (25, "validation", 4, "train")}


def test_too_many_rows_and_none(tmp_path: Path) -> None:
    many = check_near_duplicates(tmp_path, "text", ("text",), Records("text"), {"train": np.arange(20_001)})  # type: ignore[arg-type]
    assert many == {"state": "left out", "why": "the splits have 20,001 rows; at most 20,000 are compared"}
    none = check_near_duplicates(tmp_path, "text", ("text",), Records("text"), {"train": np.arange(9)})  # type: ignore[arg-type]
    assert none["pairs"] == 0 and read_pairs(tmp_path) == []
