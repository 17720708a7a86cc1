"""A search that is killed, with SIGKILL in the middle of a trial or with Ctrl-C, and started again ends with the same trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run

pytest.importorskip("optuna")
SEARCH = """\
name: killed
experiment: tiny.yaml
space:
  phases.1.optimizer.schedule.peak: {kind: float, low: 1.0e-5, high: 1.0e-2, log: true}
  phases.0.optimizer.schedule.rate: {kind: float, low: 1.0e-4, high: 1.0e-1, log: true}
set: {phases.1.epochs: 3, data.augment.0.seconds: 0.003}
strategy: {kind: hyperband, sampler: {kind: tpe, startup: 2}, min_steps: 5, brackets: 1}
trials: 6
save_seconds: 0.0
"""
TOLD = ("trial", "state", "value", "settings", "curve", "steps", "best_step", "metrics", "reason")


def trials(folder: Path) -> list[dict[str, Any]]:
    path = folder / "runs" / "killed" / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def told(folder: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in TOLD} for row in trials(folder)]


def in_trial(number: int, evaluations: int, saved: bool) -> Callable[[Path], bool]:
    """Trial `number` has been evaluated so often, and has a whole checkpoint where that is asked for."""

    def has_come(folder: Path) -> bool:
        own = folder / "runs" / "killed" / "trials" / f"{number:04d}"
        rows = own / "evaluations.jsonl"
        proofs = list(own.glob("checkpoints/*/jaxtune_manifest.json"))
        return rows.is_file() and rows.read_text().count("\n") >= evaluations and (bool(proofs) or not saved)

    return has_come


def strike(folder: Path, when: Callable[[Path], bool], number: signal.Signals) -> int:
    """Starts the search and sends it a signal at that moment; the exit code."""
    with open(folder / "out.txt", "w") as out:
        process = subprocess.Popen(
            tiny_run.command("search", "search.yaml"),
            cwd=folder,
            env=tiny_run.environment(),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None and not when(folder):
                time.sleep(0.002)
            assert process.poll() is None, f"the search ended before the moment came:\n{(folder / 'out.txt').read_text()}"
            os.kill(process.pid, number)
            return process.wait(timeout=120)
        finally:
            process.kill()
            process.wait()


def test_a_killed_search_ends_with_the_same_trials(tmp_path: Path) -> None:
    tiny_run.write_all(tmp_path / "whole")
    (tmp_path / "whole" / "search.yaml").write_text(SEARCH)
    disturbed = tiny_run.copy(tmp_path / "whole", tmp_path / "disturbed")

    done = tiny_run.run("search", "search.yaml", "--json", folder=tmp_path / "whole")
    assert done.code == 0, done.stderr
    assert done.told["trials"]["complete"] >= 1 and done.told["trials"]["stopped"] >= 1 and done.told["compilations"] == 2

    assert strike(disturbed, in_trial(0, 3, saved=True), signal.SIGKILL) == -signal.SIGKILL
    assert strike(disturbed, in_trial(2, 1, saved=False), signal.SIGINT) == 130
    assert len(trials(disturbed)) >= 2
    journal = disturbed / "runs" / "killed" / "journal.log"
    with open(journal, "a") as file:
        file.write('{"op_code": 5, "torn')  # as a kill in the middle of a line leaves it
    (journal.with_name("journal.log.lock")).touch()
    again = tiny_run.run("search", "search.yaml", "--json", folder=disturbed)
    assert again.code == 0, again.stderr

    assert told(disturbed) == told(tmp_path / "whole")
    events = [json.loads(line) for line in (disturbed / "runs" / "killed" / "events.jsonl").read_text().splitlines()]
    assert [row["trial"] for row in events if row["event"] == "resumed"] == [0, 2]
    for folder in (disturbed, tmp_path / "whole"):
        assert not any((folder / "runs" / "killed" / "trials").iterdir())
    winners = [(folder / "runs" / "killed" / "winner.yaml").read_text() for folder in (disturbed, tmp_path / "whole")]
    assert winners[0] == winners[1]
