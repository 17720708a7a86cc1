"""Weights & Biases and MLflow with stand-ins for their packages: what is sent, and that a service that raises or hangs costs nothing."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stand_ins import Service

from jaxtune.core.files import Rows
from jaxtune.tracking.background import InBackground
from jaxtune.tracking.base import Sink, Tracker, Trackers
from jaxtune.tracking.mlflow import Mlflow
from jaxtune.tracking.wandb import Wandb, identity

ROWS = [
    {"step": 1, "split": "train", "loss": 0.5, "compiled": True, "time": 2.0},
    {"step": 1, "split": "validation", "f1": 0.25, "f1_per_class": [0.1, 0.4], "time": 3.0},
]


def follow(tracker: Tracker, folder: Path, step: int = 0) -> float:
    """Logs ROWS through all trackers; the seconds it took."""
    start = time.perf_counter()
    trackers = Trackers((tracker,), folder, {"name": "demo", "phases": [{"epochs": 2}]}, step)
    for row in ROWS:
        trackers.log(row)
    trackers.close()
    return time.perf_counter() - start


def test_wandb_is_told_numbers_with_their_own_step(service: Service, tmp_path: Path):
    follow(Wandb(project="p", tags=("a",)), tmp_path)
    (opened,) = service.of("open")
    assert (opened["project"], opened["name"], opened["tags"], opened["resume"]) == ("p", tmp_path.name, ["a"], "allow")
    assert opened["config"]["phases"] == [{"epochs": 2}] and opened["id"] == identity(tmp_path)
    assert service.of("define")[-1] == {"names": ("*",), "step_metric": "step"}
    assert service.of("log") == [
        {"step": 1, "train/loss": 0.5},
        {"step": 1, "validation/f1": 0.25},
    ]
    assert len(service.of("close")) == 1


def test_wandb_knows_a_run_again_and_tells_two_of_one_name_apart(tmp_path: Path):
    names = []
    for moment in ("2026-01-01", "2026-01-01", "2026-01-02"):
        (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"time": moment}]}))
        names.append(identity(tmp_path))
    assert names[0] == names[1] != names[2]


def test_mlflow_is_told_numbers_and_settings_and_goes_on_in_its_run(service: Service, tmp_path: Path):
    follow(Mlflow(uri="file:x"), tmp_path)
    assert service.of("open") == [{"uri": "file:x"}] and service.of("experiment") == [{"name": "jaxtune"}]
    assert service.of("params")[0]["params"] == [("name", "demo"), ("phases.0.epochs", "2")]
    assert service.of("log")[0] == {"run": "abc", "params": [], "metrics": [("train/loss", 0.5, 2000, 1)]}
    assert service.of("close") == [{"run": "abc"}]
    follow(Mlflow(uri="file:x"), tmp_path, step=1)
    assert len(service.of("run")) == 1 and len(service.of("params")) == 1 and len(service.of("close")) == 2


@pytest.mark.parametrize("when", ["open", "log", "close"])
@pytest.mark.parametrize("tracker", [Wandb(), Mlflow()], ids=["wandb", "mlflow"])
def test_a_service_that_fails_is_told_about_once(
    tracker: Tracker, when: str, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    service.raises = when
    trackers = Trackers((tracker,), tmp_path, {})
    for step in range(5):
        trackers.log({"step": step, "split": "train", "loss": 0.5})
        time.sleep(0.01)
    trackers.close()
    assert len(list(Rows(tmp_path / "metrics.jsonl").read())) == 5
    assert caplog.text.count("failed (RuntimeError: quota); training goes on without it") == 1


def test_a_client_that_wants_to_end_the_process_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    class Leaving(Tracker):
        def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
            return InBackground("Leaving", lambda: sys.exit("no login"), close_seconds=1.0)

    trackers = Trackers((Leaving(),), tmp_path, {})
    trackers.log({"step": 1})
    trackers.close()
    assert caplog.text.count("Leaving failed (RuntimeError: SystemExit: no login)") == 1


@pytest.mark.parametrize("when", ["open", "log", "close"])
@pytest.mark.parametrize("tracker", [Wandb(close_seconds=0.2), Mlflow(close_seconds=0.2)], ids=["wandb", "mlflow"])
def test_a_service_that_hangs_costs_its_end_only(
    tracker: Tracker, when: str, service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    service.hangs = when
    assert follow(tracker, tmp_path) < 2.0
    assert len(list(Rows(tmp_path / "metrics.jsonl").read())) == 2
    assert caplog.text.count("TimeoutError: not done 0.2 s after the last row") == 1


class Stuck(Sink):
    def __init__(self, released: threading.Event):
        self.released, self.rows = released, 0

    def log(self, row: Mapping[str, Any]) -> None:
        self.released.wait(30)
        self.rows += 1

    def close(self) -> None:
        """Nothing is open."""


def test_a_full_queue_drops_rows_says_so_once_and_never_waits(caplog: pytest.LogCaptureFixture):
    released = threading.Event()
    sink = Stuck(released)
    behind = InBackground("Slow", lambda: sink, close_seconds=5.0, waiting_rows=10)
    start = time.perf_counter()
    for step in range(100):
        behind.log({"step": step})
    assert time.perf_counter() - start < 0.5
    assert 88 <= behind.dropped <= 90 and caplog.text.count("does not keep up") == 1
    released.set()
    behind.close()
    assert sink.rows == 100 - behind.dropped


@pytest.mark.parametrize(("tracker", "package"), [(Wandb(), "wandb"), (Mlflow(), "mlflow")])
def test_a_missing_package_is_told_before_the_training(tracker: Tracker, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    (problem,) = tracker.problems()
    assert f"needs the package {package}; install it with: pip install {package}" in problem
