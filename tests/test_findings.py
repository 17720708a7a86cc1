"""When the base model reads the training rows again at the end of a run, and when that would cost more than it tells."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import Trained

from jaxtune.findings import check_data


def checked(folder: Path, *, examples: int, seconds: float = 1.0, checkpoint: object = "a base") -> dict[str, Any]:
    """checks.json's part about labels, of a run that trained on `examples` of 100 rows; looking itself fails."""
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(examples // 5):
            file.write(json.dumps({"step": step + 1, "split": "train", "examples": 5, "seconds": seconds, "compiled": step == 0}) + "\n")
    prepared: Any = SimpleNamespace(
        experiment=SimpleNamespace(evaluation=SimpleNamespace(label_check=True, near_duplicates=False)),
        base=SimpleNamespace(checkpoint=checkpoint),
        problem="single_label",
        truth=["a", "b"] * 50,
        names=("a", "b"),
        scanned=SimpleNamespace(keys=[str(i) for i in range(100)]),
        splits={"train": Rows()},
    )
    return check_data(SimpleNamespace(prepared=prepared, base_features=lambda split: 1 / 0), folder)["labels"]  # type: ignore[arg-type]


class Rows:
    ids = range(100)

    def __len__(self) -> int:
        return 100


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"examples": 50}, "the run trained on 50 examples, less than an epoch, and the base would have to read all training rows"),
        ({"examples": 200, "seconds": 200.0}, "an epoch takes 65 minutes, and looking up to as long"),
        ({"examples": 200, "checkpoint": None}, "the base is a new model, which tells nothing yet"),
    ],
)
def test_it_is_left_out_where_it_is_not_worth_its_time(facts: dict[str, Any], why: str, tmp_path: Path) -> None:
    assert checked(tmp_path, **facts) == {"state": "left out", "why": why}


def test_it_is_tried_after_an_epoch_and_what_goes_wrong_is_noted(tmp_path: Path) -> None:
    found = checked(tmp_path, examples=100)
    assert (found["state"], found["why"]) == ("failed", "ZeroDivisionError: division by zero")


def test_a_real_run_looks_at_its_data(trained: Trained) -> None:
    checks = json.loads((trained.run / "checks.json").read_text())
    assert checks["labels"]["state"] == "done" and checks["labels"]["rows"] == 72 and checks["labels"]["probe_accuracy"] > 0.5
    assert checks["near_duplicates"]["state"] == "done" and checks["near_duplicates"]["rows"] == 120


def test_a_report_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs, written = importlib.import_module("jaxtune.run"), []  # `jaxtune.run` itself is the function
    monkeypatch.setattr(runs, "check_data", lambda session, folder: {"labels": {}})
    monkeypatch.setattr(runs, "write_advice", lambda folder: written.append("advice"))
    monkeypatch.setattr(runs, "write_report", lambda folder, records: {}["nothing"])
    folder: Any = SimpleNamespace(path=tmp_path, write_json=lambda name, value: written.append(name))
    runs.look_back(SimpleNamespace(prepared=SimpleNamespace(scanned=SimpleNamespace(records=None))), folder)
    assert written == ["checks.json", "advice"] and "no report (KeyError: 'nothing'); the result stands" in caplog.text
