"""`jaxtune compare`: words for people, one object with --json, a page with -o, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main


@pytest.fixture
def pair(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and a copy of it with another rate in its settings and three answers spoilt."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    here = tiny_run.copy(trained.folder, tmp_path / "here")
    other = tiny_run.copy(here / "runs" / "tiny", here / "runs" / "other")
    settings = other / "resolved.yaml"
    settings.write_text(settings.read_text().replace("seed: 3", "seed: 4", 1))
    path = other / "predictions" / "test.parquet"
    table = pq.ParquetFile(path).read().to_pydict()
    right = [i for i, label in enumerate(table["label"]) if table["predicted"][i] == label]
    for i in right[:3]:
        table["predicted"][i] = next(name for name in tiny_run.LABELS if name != table["label"][i])
        table["loss"][i] += 2.0
    pq.write_table(pa.table(table), path)
    monkeypatch.chdir(here)
    return here


def test_for_people_and_as_a_page(pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "runs/tiny", "runs/other", "-o", "page.html"]) == 0
    said = capsys.readouterr().out
    assert "other gets 0 right that tiny gets wrong, and 3 the other way (exact McNemar p = 0.25)" in said
    assert "broken: 3, for example" in said and "seed     3 -> 4" in said and said.rstrip().endswith("page.html")
    assert any(word in said for word in ("team", "film", "price", "shop")), "the texts of the examples"
    assert "Broken by other" in (pair / "page.html").read_text()


def test_as_json(pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "runs/tiny", "runs/other", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (len(told["broken"]), told["fixed"], told["mcnemar_p"], told["settings"]) == (3, [], pytest.approx(0.25), {"seed": [3, 4]})
    assert told["numbers"]["accuracy"]["difference"] == pytest.approx(-3 / told["examples"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/tiny", "runs/tinny"], "runs/tinny: there is no such run"),
        (["runs/tiny", "texts"], "texts: this is no run folder"),
        (["runs/tiny", "runs/other", "-o", "nowhere/page.html"], "there is no folder"),
        (["runs/tiny", "runs/other", "-o", "page.pdf"], 'found suffix ".pdf"; the page is HTML, call it page.html'),
    ],
)
def test_what_it_refuses(words: list[str], message: str, pair: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", *words]) == 2
    assert message in capsys.readouterr().err


def test_other_data(pair: Path, capsys: pytest.CaptureFixture[str]):
    path = pair / "runs" / "other" / "environment.json"
    found = json.loads(path.read_text())
    found["starts"][-1]["data"] = "0123456789abcdef"
    path.write_text(json.dumps(found))
    assert main(["compare", "runs/tiny", "runs/other"]) == 0, "the same texts, found by their content"
    import pyarrow as pa
    import pyarrow.parquet as pq

    predictions = pair / "runs" / "other" / "predictions" / "test.parquet"
    table = pq.ParquetFile(predictions).read().to_pydict()
    pq.write_table(pa.table(table | {"key": [f"x{key}" for key in table["key"]]}), predictions)
    capsys.readouterr()
    assert main(["compare", "runs/tiny", "runs/other"]) == 2
    assert "the runs have other data" in capsys.readouterr().err
