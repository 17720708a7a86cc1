"""`jaxtune evaluate`: the numbers of result.json again, and those of other splits and checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main


def test_it_measures_what_the_run_measured(trained: Trained):
    done = tiny_run.run("evaluate", "runs/tiny", "--json", folder=trained.folder)
    assert (done.code, done.stdout.count("\n")) == (0, 1), done.stderr
    told = done.told
    assert (told["run"], told["split"], told["checkpoint"]) == ("runs/tiny", "test", "best")
    assert told["metrics"] == json.loads((trained.run / "result.json").read_text())["test"]


def test_the_latest_checkpoint_on_another_split(trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """On 8 devices instead of one, so to within rounding."""
    monkeypatch.chdir(trained.folder)
    assert main(["evaluate", "runs/tiny", "--split", "validation", "--checkpoint", "latest", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    rows = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "validation"][-1]
    assert last["step"] == json.loads((trained.run / "result.json").read_text())["steps"]
    for name in ("loss", "accuracy", "f1"):
        assert found[name] == pytest.approx(last[name], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["runs/tiny", "--split", "tset"], 2, 'split "tset" does not exist; did you mean "test"? (splits: train, validation, test)'),
        (["runs/tiny", "--checkpoint", "first"], 2, '--checkpoint: found "first"; expected best, latest or the number of a step'),
        (["runs/tiny", "--checkpoint", "1"], 76, "/runs/tiny has no checkpoint 1 (there are: "),
        (["runs/tinny"], 2, "runs/tinny: there is no such run (runs there: tiny)"),
        (["texts"], 2, "texts: this is no run folder (resolved.yaml is missing)"),
    ],
)
def test_what_is_not_there(
    trained: Trained, words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(trained.folder)
    assert main(["evaluate", *words]) == code
    assert message in capsys.readouterr().err


def test_other_data_than_those_of_the_run(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    moved = tiny_run.copy(trained.folder, tmp_path / "moved")
    monkeypatch.chdir(moved)
    (moved / "texts" / "sport" / "00.txt").write_text("team team team")
    assert main(["evaluate", "runs/tiny"]) == 2
    assert "the data (source, content or transforms) changed since the checkpoint was made" in capsys.readouterr().err
