"""What the report says about temperature, slices, suspect labels and near copies, with and without the files they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import MadeRun
from test_report import ATTACKS, Parsed, Told, check_harmless

from jaxtune.evaluation.record import RunRecord
from jaxtune.evaluation.report import write_report


def page(tmp_path: Path, records: Any = None, **made: Any) -> Parsed:
    folder = MadeRun(**{"checked": True, **made}).write(tmp_path / "run")
    return Parsed(write_report(folder, records).read_text(encoding="utf-8"))


def text(found: Parsed) -> str:
    return found.text.replace("\u00a0", " ")


# -- temperature ------------------------------------------------------------------------------------------------------------


def test_the_temperature_is_fitted_on_validation_and_measured_on_test(tmp_path: Path) -> None:
    found = page(tmp_path, skill=4.0)
    assert re.search(r"(Suggested temperature: 0\.\d+ \(fitted on validation\)|The temperature fitted on validation is)", text(found))
    assert "as trained" in found.text_in("th") and any(t.startswith("at temperature") for t in found.text_in("th"))
    figure = (tmp_path / "run" / "plots" / "calibration.svg").read_text()
    assert 'class="other"' in figure


def test_with_one_split_it_is_measured_by_halves(tmp_path: Path) -> None:
    assert "fitted on one half of validation for the other" in text(page(tmp_path, splits=("validation",), skill=4.0))


def test_no_temperature_is_fitted_on_test(tmp_path: Path) -> None:
    assert "emperature" not in text(page(tmp_path, splits=("test",), skill=4.0))


def test_no_temperature_for_too_few_examples_or_no_errors(tmp_path: Path) -> None:
    few = page(tmp_path / "few", examples=12)
    assert "emperature" not in text(few)
    sure = page(tmp_path / "sure", skill=40.0)
    assert "No temperature is suggested: fitted on validation, it would lie below 0.05" in text(sure)


# -- slices -----------------------------------------------------------------------------------------------------------------


def test_slices_by_class_length_and_columns_of_the_records(tmp_path: Path) -> None:
    made = MadeRun(checked=True, examples=400, skill=2.0)
    folder = made.write(tmp_path / "run")
    rows = set(made.predictions["test"].ids.tolist()) | set(made.predictions["validation"].ids.tolist())
    wrong = {
        int(i)
        for split in ("validation", "test")
        for i, p in zip(made.predictions[split].ids, made.predictions[split].probabilities, strict=True)
        if made.names[int(p.argmax())] != made.truth[int(i)]
    }
    records: Any = Told(text="x", origin=lambda row: "scan" if row in wrong or row % 9 == 0 else "mail", year=lambda row: 2000 + row % 5)
    assert len(rows) == 800
    found = Parsed(write_report(folder, records).read_text(encoding="utf-8"))
    heads = found.text_in("th")
    assert {"business", "origin mail", "origin scan", "year at most 2001"} <= set(heads)
    assert [head for head in heads if head.startswith("length in tokens at most")]
    assert any(head == "origin “scan”" for head in heads), "the tree finds the column that the errors hang on"
    assert re.search(r"Stands out: [^.]*origin “scan”[^.]*, \d+ examples, \d+\.\d % right", text(found))
    assert "measured on test" in " ".join(found.text_in("caption")) and "Only where the distance is set in bold" in text(found)


def test_the_trend_of_a_class_comes_from_the_evaluations(tmp_path: Path) -> None:
    record = RunRecord.read(MadeRun(checked=True).write(tmp_path / "run"))
    assert record.slice_curve("class", "tech").tolist() == pytest.approx([0.5 + 0.004 * step for step in range(10, 120, 10)])
    assert len(record.slice_curve("class", "nothing")) == 0
    found = page(tmp_path / "more")
    assert "on validation from 0.540 to 0.940" in [a["aria-label"] for a in found.all("svg") if "aria-label" in a]


def test_without_records_slices_come_from_the_predictions(tmp_path: Path) -> None:
    found = text(page(tmp_path))
    assert "No columns of the records: the records were not at hand." in found


# -- suspects and near copies -----------------------------------------------------------------------------------------------


def test_suspects_come_with_both_labels_and_text(tmp_path: Path) -> None:
    found = page(tmp_path, Told(text=lambda row: f"text of row {row}"))
    assert "Suspect labels" in found.text_in("h2")
    assert "2 labels of 400 in training are suspect (about 0.5 % of the labels are estimated to be wrong)" in text(found)
    assert "labelled business rather tech probability of the label 0.010, lower by 0.900 row 1" in text(found)
    assert "it agrees with 93.0 % of the labels. It took 12 s. 3 rows of classes with fewer than five rows were not judged." in text(found)
    assert "text of row 1" in found.text_in("blockquote")


def test_where_the_probe_is_often_wrong_it_does_not_say_that_labels_are(tmp_path: Path) -> None:
    folder = MadeRun(checked=True).write(tmp_path / "run")
    made = json.loads((folder / "checks.json").read_text())
    made["labels"]["probe_accuracy"] = 0.7
    (folder / "checks.json").write_text(json.dumps(made))
    found = text(Parsed(write_report(folder).read_text(encoding="utf-8")))
    assert (
        "The probe agrees with only 70.0 % of the labels, so many of these are hard for it" in found
        and "estimated to be wrong" not in found
    )


def test_near_copies_come_with_shares_and_the_score_without_them(tmp_path: Path) -> None:
    found = page(tmp_path, Told(text=lambda row: f"text of row {row}"))
    assert "2 test examples have a near copy in training (1.0 %). Without them" in text(found)
    assert "75.0 % in common test and train" in text(found) and "text of row 901" in found.text_in("blockquote")
    made = json.loads((tmp_path / "run" / "checks.json").read_text())
    made["near_duplicates"] |= {"pairs": 0}
    (tmp_path / "run" / "checks.json").write_text(json.dumps(made))
    (tmp_path / "run" / "predictions" / "near_duplicates.parquet").unlink()
    again = Parsed(write_report(tmp_path / "run").read_text(encoding="utf-8"))
    assert "No two examples of different splits are nearly the same (800 compared)." in text(again)


def test_what_was_left_out_is_said_and_what_was_switched_off_is_not_there(tmp_path: Path) -> None:
    folder = MadeRun(checked=True).write(tmp_path / "run")
    (folder / "checks.json").write_text(json.dumps({"labels": {"state": "left out", "why": "too many <b>rows</b>"}}))
    found = Parsed(write_report(folder).read_text(encoding="utf-8"))
    assert "Wrong labels were not looked for: too many <b>rows</b>." in found.text and "Near copies across splits" not in found.text
    assert {attributes["href"].removeprefix("#") for attributes in found.all("a")} == {attributes["id"] for attributes in found.all("h2")}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_columns_and_labels(attack: str, tmp_path: Path) -> None:
    records = Told(text=attack, path=attack, **{attack: lambda row: attack + str(row % 2), "number": lambda row: row % 5})
    found = page(tmp_path, records, names=(attack, "other", attack + "2"))
    check_harmless(found)
    assert not set("\x1b\x00\u202e") & set(found.text)


def test_images_of_suspects(tmp_path: Path) -> None:
    found = page(tmp_path, Told(image=lambda row: np.full((30, 20, 3), row % 256, np.uint8)), domain="image")
    assert any(re.fullmatch(r"row 1: labelled business, rather tech", attributes["alt"]) for attributes in found.all("img"))
