"""`jaxtune export`: the same folder as the run made, elsewhere; nothing is written over."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main


def test_it_equals_what_the_run_exported(trained: Trained, tmp_path: Path):
    done = tiny_run.run("export", "runs/tiny", "-o", tmp_path / "out", "--json", folder=trained.folder)
    assert (done.code, done.stdout.count("\n")) == (0, 1), done.stderr
    assert done.told == {"folder": str(tmp_path / "out"), "files": sorted(path.name for path in (tmp_path / "out").iterdir())}
    for file in (trained.run / "export").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_folder_that_is_there_is_left_alone(trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(trained.folder)
    before = {path: path.stat().st_mtime_ns for path in (trained.run / "export").iterdir()}
    assert main(["export", "runs/tiny"]) == 2
    assert (
        capsys.readouterr().err == "error: runs/tiny/export: exists and is not empty; nothing was written. Choose another folder with -o\n"
    )
    assert {path: path.stat().st_mtime_ns for path in (trained.run / "export").iterdir()} == before
