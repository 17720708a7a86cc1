"""A run read back from its folder: what a resume, a rollback and missing files leave behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from made_run import START, MadeRun, moment

from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.record import RunRecord


def test_curves_come_in_order_of_the_steps_and_the_later_word_holds(tmp_path: Path) -> None:
    made = MadeRun(steps=12)
    folder = made.write(tmp_path / "run")
    again = [{"step": 3, "split": "train", "loss": "NaN"}, {"step": 4, "split": "train", "loss": 9.5}]
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in again) + '{"step": 99, "spl')  # torn by a crash
    steps, loss = RunRecord.read(folder).curve("train", "loss")
    assert steps.tolist() == list(range(1, 13))
    assert math.isnan(loss[2]) and loss[3] == 9.5


def test_phases_have_their_steps_also_after_a_resume(tmp_path: Path) -> None:
    table = [{"pattern": "*", "arrays": 10, "parameters": 1000, "share": 1.0, "trains": True}]
    resumed = {"time": moment(500), "event": "phase", "step": 90, "phase": 1, "table": table}
    record = RunRecord.read(MadeRun(steps=120, events=[resumed]).write(tmp_path / "run"))
    assert [(phase.number, phase.step, phase.steps) for phase in record.phases] == [(0, 0, 60), (1, 60, 60)]
    assert [(phase.trained, phase.parameters) for phase in record.phases] == [(10, 1000), (1000, 1000)]
    assert record.phases[0].settings["train"] == ["head.*"]


def test_where_the_time_went(tmp_path: Path) -> None:
    times = RunRecord.read(MadeRun(steps=12).write(tmp_path / "run")).times
    assert times.waiting == pytest.approx(0.5 * 11)
    assert times.steps == pytest.approx(1.5 * 11), "the first step was compiled and counts as compiling"
    assert times.compiling == pytest.approx(4.0 + 2.0)
    assert times.evaluating == pytest.approx(12 * 1.0)
    assert times.saving == pytest.approx(0.25)
    assert times.total == pytest.approx(20 + 12 * 3 + 1), "from the start to the last sign of life"


def test_the_pause_before_a_resume_is_nobodys_time(tmp_path: Path) -> None:
    made = MadeRun(steps=12)
    folder = made.write(tmp_path / "run")
    made.json("environment.json", {"starts": [made.environment(), {**made.environment(), "time": moment(1000)}]})
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 13, "split": "train", "loss": 1.0, "compiled": True, "seconds": 2, "time": START + 1010}) + "\n")
    assert RunRecord.read(folder).wall_seconds == pytest.approx(57 + 10)


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    folder = MadeRun(steps=5).write(tmp_path / "run")
    (folder / "result.json").unlink()
    with pytest.raises(ConfigError, match=r"result\.json missing; expected the folder of a run that has ended"):
        RunRecord.read(folder)


def test_class_curves(tmp_path: Path) -> None:
    found = RunRecord.read(MadeRun(steps=24).write(tmp_path / "run")).class_curve("f1_per_class")
    assert found.shape == (12, 3) and np.isfinite(found).all()
