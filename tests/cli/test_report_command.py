"""`jaxtune report`: the page again, from the folder alone when the records are gone or have changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main


def test_the_page_is_the_one_that_the_run_wrote(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tiny_run.copy(trained.folder, tmp_path / "here")
    monkeypatch.chdir(here)
    page = here / "runs" / "tiny" / "report.html"
    written = page.read_text()
    page.unlink()
    assert main(["report", "runs/tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"run": "runs/tiny", "report": str(page), "with_records": True, "why_not": None}
    assert page.read_text() == written


def test_without_the_data_it_says_so(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    here = tiny_run.copy(trained.folder, tmp_path / "here")
    monkeypatch.chdir(here)
    (here / "texts" / "sport" / "00.txt").write_text("team team team")
    assert main(["report", "runs/tiny"]) == 0
    assert "(without texts and images: the data have changed since the run)" in capsys.readouterr().out
    (here / "texts").rename(here / "elsewhere")
    assert main(["report", "runs/tiny"]) == 0
    assert "without texts and images: data.source.path: " in capsys.readouterr().out
    assert "Texts and images are not kept in the run folder." in (here / "runs" / "tiny" / "report.html").read_text()


def test_a_folder_that_cannot_be_written(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tiny_run.copy(trained.folder, tmp_path / "here")
    monkeypatch.chdir(here)
    (here / "runs" / "tiny" / "report.html").unlink()
    (here / "runs" / "tiny" / "report.html").mkdir()
    assert main(["report", "runs/tiny"]) == 74
    assert "runs/tiny: the report could not be written there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("runs/tinny", "there is no such run (runs there: tiny)"),
        ("texts", "this is no run folder"),
        ("runs/half", "the run has no result yet (it is preempted)"),
    ],
)
def test_what_is_no_finished_run(
    run: str, message: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    here = tiny_run.copy(trained.folder, tmp_path / "here")
    monkeypatch.chdir(here)
    if run == "runs/half":
        (here / "runs/tiny").rename(here / run)
        (here / run / "result.json").unlink()
        (here / run / "state.json").write_text('{"status": "preempted"}')
    assert main(["report", run]) == 2
    assert message in capsys.readouterr().err
