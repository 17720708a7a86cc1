"""`jaxtune resume` of a run that is done, and of things that are no run. Killed runs: tests/test_kill_and_resume.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main


def test_a_run_that_is_done_stays_as_it_is(trained: Trained, tmp_path: Path):
    folder = tiny_run.copy(trained.folder, tmp_path / "copy")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "runs").rglob("*") if path.is_file()}
    done = tiny_run.run("resume", "runs/tiny", "--json", folder=folder)
    assert (done.code, done.stdout.count("\n"), done.stderr) == (0, 1, "")
    assert done.told["test"] == trained.done.told["test"]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "runs").rglob("*") if path.is_file()} == before


def test_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "runs/x"]) == 2
    assert capsys.readouterr().err == "error: runs/x: there is no such run\n"


def test_a_run_that_another_process_has(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from jaxtune.core.lock import describe_process

    folder = tiny_run.copy(trained.folder, tmp_path / "copy")
    monkeypatch.chdir(folder)
    (folder / "runs" / "tiny" / "lock").write_text(json.dumps(describe_process()))
    assert main(["resume", "runs/tiny"]) == 73
    assert "is in use by process" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_all_damaged(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tiny_run.copy(trained.folder, tmp_path / "copy")
    run = folder / "runs" / "tiny"
    monkeypatch.chdir(folder)
    (run / "state.json").write_text(json.dumps({"status": "preempted"}))
    for array in (run / "checkpoints").glob("*/arrays/d/*"):
        array.write_bytes(array.read_bytes()[:-1] + b"?")
    assert main(["resume", "runs/tiny"]) == 76
    assert "no usable checkpoint in" in capsys.readouterr().err
    state = json.loads((run / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 76)
