"""A run that is killed and resumed again and again ends as the undisturbed one, bit by bit. benchmarks/kill_resume.py does it at length."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_run
from killing import Moment, after_step, before_the_proof, differences, in_a_save, last_step, strike, when_there
from tiny_run import Trained


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny" / "state.json").read_text())


def kill(folder: Path, moment: Moment) -> None:
    """SIGKILL leaves no word; state.json still says running."""
    code, _ = strike(folder, moment)
    assert code == -signal.SIGKILL, f"the run ended before {moment.name}"
    assert state(folder)["status"] == "running"


@pytest.mark.parametrize("trial", range(3))
def test_killed_and_resumed_equals_undisturbed(trained: Trained, tmp_path: Path, trial: int):
    dice = random.Random()
    folder = tmp_path / "here"
    tiny_run.write_all(folder)
    first, second = dice.randint(1, 9), dice.randint(11, 30)
    moments = [
        [after_step(first), in_a_save(second)],
        [before_the_proof(second)],
        [when_there("export")],  # when all is there but the word that it is done
    ][trial]
    for moment in moments:
        kill(folder, moment)
    done = tiny_run.run("resume", "runs/tiny", "--json", folder=folder)
    assert (done.code, done.stdout.count("\n")) == (0, 1), done.stderr
    assert differences(trained.run, folder / "runs" / "tiny") == [], [moment.name for moment in moments]
    assert state(folder)["status"] == "done" and state(folder)["restarts"] >= 1


def test_preempted_and_interrupted(trained: Trained, tmp_path: Path):
    """SIGTERM and Ctrl-C finish the step, save it, and say with which code they end."""
    folder = tmp_path / "here"
    tiny_run.write_all(folder)
    for number, step, code, status in ((signal.SIGTERM, 5, 75, "preempted"), (signal.SIGINT, 20, 130, "interrupted")):
        found, said = strike(folder, after_step(step), number)
        assert found == code, said
        stopped = last_step(folder / "runs" / "tiny")
        now = state(folder)
        assert (now["status"], now["exit_code"], now["last_durable_step"]) == (status, code, stopped)
        assert now["reason"] == f"stopped after step {stopped}" and f"error: stopped after step {stopped}" in said
        assert (folder / "runs" / "tiny" / "checkpoints" / str(stopped) / "jaxtune_manifest.json").exists()
    assert tiny_run.run("resume", "runs/tiny", folder=folder).code == 0
    assert differences(trained.run, folder / "runs" / "tiny") == []
    now = state(folder)
    assert (now["status"], now["exit_code"], now["reason"], now["restarts"]) == ("done", 0, None, 2)
