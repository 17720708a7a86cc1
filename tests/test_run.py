"""A run by Python: what it tells, what it hands back, and that never-trained tensors come out as they went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field
from safetensors.numpy import load_file

import jaxtune
from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.evaluation.evaluate import Evaluated as Measures
from jaxtune.experiment import load_experiment
from jaxtune.recorder import Measured, PhaseStarted, Resumed
from jaxtune.run import Result, resume, run
from jaxtune.session import Compiled
from jaxtune.training.loop import Decided, Evaluated, Progress, Saved, Stepped
from jaxtune.training.stopping.base import Continue, Decision, Memory, Report, Rollback, StopRule

HEAD_ONLY = [
    "phases=[{steps: 4, train: [head.*], optimizer: {kind: adamw, schedule: {kind: constant, rate: 0.01}}}]",
    "model.dtype=bfloat16",
]


class GoBackOnce(StopRule):
    """Goes back to the best checkpoint at its second evaluation."""

    factor: float = Field(default=0.5, description="of the rate")

    def start(self) -> Memory:
        return {"asked": 0}

    def decide(self, memory: Memory, report: Report) -> tuple[Memory, Decision]:
        asked = memory["asked"] + 1
        return {"asked": asked}, Rollback(self.factor, "as planned") if asked == 2 else Continue()


@pytest.fixture
def tried(tiny_experiment: Path) -> tuple[Result, list[Any]]:
    """A head-only run in bfloat16, and its events."""
    events: list[Any] = []
    experiment = load_experiment(tiny_experiment, HEAD_ONLY)
    return run(experiment, runs_dir="runs", watch=events.append), events


def test_what_a_run_hands_back_and_tells(tried: tuple[Result, list[Any]]):
    result, events = tried
    assert result.folder == Path("runs/tiny").absolute() and result.export.is_dir()
    assert result.numbers == json.loads((result.folder / "result.json").read_text())
    assert result.test == result.numbers["test"] and result.validation == result.numbers["validation"]
    kinds = [type(event) for event in events]
    assert kinds[:2] == [PhaseStarted, Compiled] and kinds[-2:] == [Measured, Measured]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 4]
    assert [event.step for event in events if isinstance(event, Evaluated)] == [3, 4]
    assert [event.step for event in events if isinstance(event, Saved)] == [3, 4] and not any(isinstance(e, Decided) for e in events)
    started = events[0]
    assert started.total_steps == 4 and [row.pattern for row in started.table] == ["head.*", "(frozen)"]


def test_never_trained_tensors_come_out_bit_equal(tried: tuple[Result, list[Any]]):
    """Although the run computed in bfloat16: they are the base's own bytes."""
    result, _ = tried
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result.export, Path("model")))
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        assert (ours[name].tobytes() == theirs[name].tobytes()) == (not name.startswith("classifier.")), name
    assert jaxtune.export_model(result.folder, "again") == Path("again")
    assert Path("again/model.safetensors").read_bytes() == (result.export / "model.safetensors").read_bytes()


def test_only_what_trained_is_in_the_checkpoint(tried: tuple[Result, list[Any]]):
    from jaxtune.checkpoint.store import Store

    result, _ = tried
    names = Store(result.folder / "checkpoints", read_only=True).arrays(4)
    assert {name for name in names if name.startswith("params/")} == {"params/head.out.kernel", "params/head.out.bias"}
    assert all("head." in name for name in names if name.startswith("opt_state/"))


def test_a_done_run_is_not_touched_by_resume(tried: tuple[Result, list[Any]]):
    result, _ = tried
    events: list[Any] = []
    assert resume(result.folder, watch=events.append) == result and events == []


def test_the_same_experiment_gives_the_same_numbers(tried: tuple[Result, list[Any]]):
    from killing import differences

    again = run(load_experiment("tiny.yaml", HEAD_ONLY), runs_dir="runs")
    assert again.folder.name == "tiny-2" and differences(tried[0].folder, again.folder) == []


def test_a_rollback_goes_on_from_the_best_with_a_lower_rate(tiny_experiment: Path):
    phases = "[{steps: 8, train: [head.*], stopping: [{kind: 'test_run:GoBackOnce'}], optimizer: {kind: sgd, schedule: {kind: constant, rate: 0.01}}}]"
    events: list[Any] = []
    result = run(load_experiment(tiny_experiment, [f"phases={phases}", "task.best=loss"]), watch=events.append)
    (back,) = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines() if '"rolled_back"' in line]
    assert back["step"] == 6 and back["to"] in (3, 6) and back["rate_scale"] == 0.5
    assert [event.step for event in events if isinstance(event, Resumed)] == [back["to"]]
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    training = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in training] == list(range(1, 9)), "every step has one row"
    rates = [round(row["learning_rate"], 6) for row in training]
    assert rates == [0.01] * back["to"] + [0.005] * (8 - back["to"])


def test_after_a_rollback_into_an_earlier_phase():
    """Its own rules go on there, its ending stands, and the lower rate lasts into the phases that follow: it cannot go round for ever."""
    earlier = Progress(step=10, phase=0, phase_step=10, rules=[{"best": 1.0}], ending="phase", seconds=5.0)
    now = Progress(
        step=17, phase=1, phase_step=7, rules=[{"asked": 2}], ending="rollback", rollback_factor=0.5, rate_scale=0.5, seconds=9.0
    )
    found = now.go_on_from(earlier)
    assert (found.step, found.phase, found.rules, found.ending, found.seconds) == (10, 0, [{"best": 1.0}], "phase", 9.0)
    found.next_phase()
    assert (found.phase, found.rate_scale, found.rules) == (1, 0.5, [])
    within = now.go_on_from(Progress(step=14, phase=1, phase_step=4, rules=[{"asked": 1}], ending="rollback"))
    assert (within.rules, within.ending, within.rate_scale) == ([{"asked": 2}], "", 0.25)
    plateau = Progress(rate_scale=0.25)
    plateau.next_phase()
    assert plateau.rate_scale == 1.0, "each phase has its own schedule"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phases.0.optimizer.no_decay=[layers.*.bias]"], 'phases.0.optimizer.no_decay: pattern "layers.*.bias" matches no parameter'),
        (
            ["phases.0.optimizer.schedule={kind: linear, peak: 0.1, warmup: 90}"],
            "phases.0.optimizer.schedule.warmup: 90 steps, but the phase has",
        ),
        (["data.evaluation_batch_size=5"], "data.evaluation_batch_size 5 does not divide by 8"),
    ],
)
def test_nothing_is_written_before_all_fits(tiny_experiment: Path, words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        run(load_experiment(tiny_experiment, words))
    assert caught.value.problems[0].startswith(message) and not Path("runs").exists()


def test_a_base_with_numbers_that_are_none(tiny_experiment: Path):
    from safetensors.numpy import save_file

    tensors = load_file("model/model.safetensors")
    tensors["bert.pooler.dense.bias"][3] = np.nan
    save_file(tensors, "model/model.safetensors")
    with pytest.raises(ModelError, match=r"bert\.pooler\.dense\.bias holds values that are not finite"):
        run(load_experiment(tiny_experiment))
    state = json.loads(Path("runs/tiny/state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 2)


def test_a_run_without_validation_and_test(tiny_experiment: Path):
    """Nothing to choose by: the last checkpoint is the result."""
    found = run(load_experiment(tiny_experiment, [*HEAD_ONLY, "data.split={kind: random, validation: 0.0, test: 0.0}"]))
    assert found.validation == found.test == {} and found.numbers["best_step"] == 4
    assert (found.export / "model.safetensors").exists() and not any(
        (found.folder / "predictions" / f"{split}.parquet").exists() for split in ("validation", "test")
    )


def test_a_folder_that_is_read_back(tried: tuple[Result, list[Any]]):
    found = jaxtune.evaluate(tried[0].folder, "test")
    assert isinstance(found, Measures) and dict(found.metrics) == dict(tried[0].test)
