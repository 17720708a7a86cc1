"""`jaxtune search`: lines for people, one object for --json, errors with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run

pytest.importorskip("optuna")
SEARCH = """\
name: found
experiment: tiny.yaml
space: {phases.0.optimizer.schedule.rate: [0.01, 0.02]}
set: {phases: [{train: ["head.*"], epochs: 1, optimizer: {kind: adamw, schedule: {kind: constant, rate: 0.01}}}]}
strategy: grid
finalists: {count: 1, seeds: 1}
"""


def test_a_search_by_command(tmp_path: Path) -> None:
    tiny_run.write_all(tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    wrong = tiny_run.run("search", "search.yaml", "space={phases.0.optimizer.schedule.rat: [1]}", "strateggy=grid", folder=tmp_path)
    assert wrong.code == 2 and 'did you mean "strategy"?' in wrong.stderr and not (tmp_path / "runs").exists()
    wrong = tiny_run.run("search", "search.yaml", "space={phases.0.optimizer.schedule.rat: [1]}", folder=tmp_path)
    assert wrong.code == 2 and 'command line: unknown setting "phases.0.optimizer.schedule.rat"' in wrong.stderr

    done = tiny_run.run("search", "search.yaml", "--name", "other", folder=tmp_path)
    assert done.code == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("trial", "again")) or "again with seed" in line]
    assert lines[0].startswith("trial   0 of 2  ") and "rate 0.0" in lines[0] and lines[1].startswith("trial   1 of 2  ")
    assert "again with seed 4" in lines[2]
    assert "2 trials (2 complete)" in done.stdout and "1 compilation of the step" in done.stdout
    assert f"jaxtune train {Path('runs') / 'other' / 'winner.yaml'}" in done.stdout

    told = tiny_run.run("search", "search.yaml", "--name", "other", "--json", folder=tmp_path)
    assert told.code == 0 and told.told["status"] == "done" and told.told["winner"]["file"] == "winner.yaml"
    assert told.told["finalists"][0]["values"] == [told.told["winner"]["repeats"]["mean"]]
    assert tiny_run.run("check", "runs/other/winner.yaml", folder=tmp_path).code == 0
