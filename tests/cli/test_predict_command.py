"""`jaxtune predict RUN INPUT -o OUT`: labels and probabilities, beside the columns that came in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main

TEXTS = ("the film was a great story", "team win game", "old price of the shop", "=market people", "")
PROBABILITIES = [f"probability {name}" for name in tiny_run.LABELS]


@pytest.fixture
def here(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run as the current one; what is written goes to tmp_path."""
    monkeypatch.chdir(trained.folder)
    return tmp_path


def write_csv(path: Path, **columns: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_a_table_goes_in_and_comes_out_with_answers(here: Path, trained: Trained):
    source = write_csv(here / "new.csv", id=[f"n{i}" for i in range(4)], text=TEXTS[:4])
    done = tiny_run.run("predict", "runs/tiny", source, "-o", here / "out.csv", "--json", folder=trained.folder)
    assert (done.code, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.told == {"out": str(here / "out.csv"), "rows": 4, "left_out": 0, "names": list(tiny_run.LABELS)}
    with (here / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "row", "predicted", "confidence", *PROBABILITIES]
    assert [row["id"] for row in rows] == ["n0", "n1", "n2", "n3"]
    assert [row["predicted"] for row in rows[:3]] == ["screen", "sport", "market"]
    assert rows[3]["text"] == "'=market people"  # a spreadsheet would run it
    for row in rows:
        shares = {name: float(row[f"probability {name}"]) for name in tiny_run.LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and max(shares, key=lambda name: shares[name]) == row["predicted"]
        assert float(row["confidence"]) == max(shares.values())


def test_every_form_holds_the_same(here: Path, capsys: pytest.CaptureFixture[str]):
    """From JSON lines and parquet to JSON lines and parquet; the label, known or not, is a column like any other."""
    rows = [{"text": text, "label": "unheard of", "n": number} for number, text in enumerate(TEXTS[:4])]
    (here / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), here / "new.parquet")
    assert main(["predict", "runs/tiny", str(here / "new.jsonl"), "-o", str(here / "a.parquet")]) == 0
    assert main(["predict", "runs/tiny", str(here / "new.parquet"), "-o", str(here / "b.jsonl")]) == 0
    table = pq.read_table(here / "a.parquet").to_pylist()
    lines = [json.loads(line) for line in (here / "b.jsonl").read_text().splitlines()]
    assert [row["text"] for row in table] == list(TEXTS[:4]) and [row["label"] for row in table] == ["unheard of"] * 4
    for one, other in zip(table, lines, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)


def test_the_runs_own_kind_of_folder_gives_what_the_run_recorded(here: Path, trained: Trained, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", "runs/tiny", "texts", "-o", str(here / "all.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 120
    found = pq.read_table(here / "all.parquet").to_pydict()
    recorded = pq.read_table(trained.run / "predictions" / "test.parquet").to_pydict()
    for name in PROBABILITIES:  # 8 devices against 1: to within rounding
        np.testing.assert_allclose(np.array(found[name])[recorded["row"]], recorded[name], atol=1e-5)
    assert np.mean([a == b for a, b in zip(found["label"], found["predicted"], strict=True)]) > 0.8


def test_columns_of_the_same_name_stay_apart(here: Path):
    source = write_csv(here / "new.csv", text=TEXTS[:1], predicted=["mine"])
    assert main(["predict", "runs/tiny", str(source), "-o", str(here / "out.jsonl")]) == 0
    row = json.loads((here / "out.jsonl").read_text())
    assert (row["predicted"], row["predicted (model)"]) == ("mine", "screen")


def test_an_empty_text_has_an_answer_too(here: Path):
    (here / "new.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    assert main(["predict", "runs/tiny", str(here / "new.jsonl"), "-o", str(here / "out.jsonl")]) == 0
    assert json.loads((here / "out.jsonl").read_text())["predicted"] in tiny_run.LABELS


@pytest.mark.parametrize(
    ("source", "out", "code", "message"),
    [
        ("new.csv", "there.csv", 2, "-o {here}/there.csv: exists; nothing was written. Choose another file or remove it"),
        ("new.csv", "out.xlsx", 2, '-o {here}/out.xlsx: found suffix ".xlsx"; expected one of .csv, .jsonl, .parquet'),
        ("new.csv", "none/out.csv", 2, "-o {here}/none/out.csv: there is no folder {here}/none; make it, or choose another place"),
        ("txt.csv", "out.csv", 2, 'no column "text" in the data; did you mean "txt"? (columns: txt)'),
        ("numbers.jsonl", "out.csv", 72, "1 of 1 rows hold no proper text (a value of type int in the first): row 0"),
        (
            "neww.csv",
            "out.csv",
            2,
            'data.source.path: no file or folder "{here}/neww.csv" ({here} has no neww.csv); did you mean "new.csv"?',
        ),
    ],
)
def test_what_cannot_be(here: Path, source: str, out: str, code: int, message: str, capsys: pytest.CaptureFixture[str]):
    write_csv(here / "new.csv", text=TEXTS[:1])
    write_csv(here / "txt.csv", txt=TEXTS[:1])
    (here / "numbers.jsonl").write_text('{"text": 3}\n')
    (here / "there.csv").write_text("mine")
    before = {path: path.read_bytes() for path in here.iterdir()}
    assert main(["predict", "runs/tiny", str(here / source), "-o", str(here / out)]) == code
    assert capsys.readouterr().err == f"error: {message.format(here=here)}\n"
    assert {path: path.read_bytes() for path in here.iterdir()} == before
