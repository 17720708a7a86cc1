"""Numbers arrive where they were asked for, and a broken tracker never hurts the training."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter

from jaxtune.core.component import Component, OneOf, load_class
from jaxtune.core.errors import ConfigError
from jaxtune.tracking import TRACKERS
from jaxtune.tracking.base import Sink, Tracker, Trackers
from jaxtune.tracking.tensorboard import TensorBoard


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", TRACKERS)
def test_every_tracker_takes_rows_and_goes_on_after_a_restart(tmp_path, kind, service):
    tracker = load_class(TRACKERS[kind])()
    assert isinstance(tracker, Tracker)
    row = {"step": 1, "split": "train", "loss": np.float32(0.5), "f1_each": [0.1, 0.2], "note": "x", "bad": float("nan")}
    for start in (0, 1):
        sink = tracker.open(tmp_path, {"name": "x", "seed": 0}, start)
        sink.log({**row, "step": start + 1})
        sink.close()
    assert any(tmp_path.iterdir()) or len(service.of("log")) == 2


def test_jsonl_rows(tmp_path):
    trackers = Trackers((), tmp_path, {})
    trackers.log({"step": 1, "split": "train", "loss": jnp.float32(0.5), "n": np.int64(3), "each": np.asarray([0.5, math.inf], np.float32)})
    trackers.log({"step": 2, "loss": float("nan"), "ok": True, "name": "é"})
    trackers.close()
    assert rows(tmp_path) == [
        {"step": 1, "split": "train", "loss": 0.5, "n": 3, "each": [0.5, "Infinity"]},
        {"step": 2, "loss": "NaN", "ok": True, "name": "é"},
    ]


def test_a_row_is_on_disk_at_once_and_later_ones_are_taken_back(tmp_path):
    trackers = Trackers((), tmp_path, {})
    for step in (1, 2, 3):
        trackers.log({"step": step})
    assert len(rows(tmp_path)) == 3
    trackers = Trackers((), tmp_path, {}, step=2)
    trackers.log({"step": 3, "again": True})
    assert rows(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    trackers.close()


def test_tensorboard_files_hold_the_numbers(tmp_path, monkeypatch):
    from tensorboardX.proto.event_pb2 import Event

    monkeypatch.setenv("HF_TOKEN", "CANARY-secret")
    sink = TensorBoard().open(tmp_path, {"name": "demo", "where": "CANARY-secret"})
    sink.log({"step": 7, "split": "validation", "accuracy": 0.25, "each": [1.0], "loss": float("inf")})
    sink.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found, at = file.read_bytes(), {}, 0
    assert b"demo" in data and b"CANARY" not in data
    while at < len(data):  # a record: length, its checksum, the event, its checksum
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += 16 + length
    assert found["validation/accuracy"] == (7, 0.25)
    assert math.isnan(found["validation/loss"][1]) and "validation/each" not in found


def test_a_missing_package_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'needs the package tensorboardX.*pip install "jaxtune\[track\]"'):
        Trackers((TensorBoard(),), tmp_path, {})


class Broken(Tracker):
    when: str

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        if self.when == "open":
            raise OSError("no network")
        return BrokenSink(self.when)


class BrokenSink(Sink):
    def __init__(self, when: str):
        self.when, self.calls = when, 0

    def log(self, row: Mapping[str, Any]) -> None:
        self.calls += 1
        if self.when == "log":
            raise RuntimeError("quota")

    def close(self) -> None:
        if self.when == "close":
            raise RuntimeError("late")


@pytest.mark.parametrize("when", ["open", "log", "close"])
def test_a_broken_tracker_is_told_about_once(tmp_path, caplog, when):
    trackers = Trackers((Broken(when=when),), tmp_path, {})
    for step in range(3):
        trackers.log({"step": step})
    trackers.close()
    assert len(rows(tmp_path)) == 3
    assert caplog.text.count("the tracker Broken failed") == 1


def test_without_metrics_jsonl_there_is_no_run(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        Trackers((), tmp_path, {})


class Settings(Component):
    tracking: tuple[Annotated[Tracker, OneOf(TRACKERS)], ...] = ()


def test_chosen_by_kind():
    settings = TypeAdapter(Settings).validate_python({"tracking": [{"kind": "tensorboard", "flush_seconds": 5}, "jsonl"]})
    assert settings.tracking[0] == TensorBoard(flush_seconds=5)
    assert Settings.model_validate(settings.model_dump()) == settings
