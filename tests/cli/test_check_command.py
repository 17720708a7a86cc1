"""`jaxtune check`: what would be trained on what, without a step and without a trace on the disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny_run

from jaxtune.cli.main import main


def test_the_report_in_words(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    before = set(tiny_experiment.parent.rglob("*"))
    assert main(["check", "tiny.yaml"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "model   model (bert, 26,843 parameters)",
        "licence none is named in the model folder",
        "fresh   head",
        "unused  2 tensors of the checkpoint: classifier.bias, classifier.weight",
        "train 72, validation 24, test 24",
        "market  24     8           8",
        "batches are padded to 20 tokens; texts that are longer: cut",
        "phase 1: 10 steps (2.0 epochs)",
        "head.*         2          99   0.37%",
        "phase 2: 45 steps (9.0 epochs)",
        "tiny.yaml: all of it fits; train with: jaxtune train tiny.yaml",
    ):
        assert line in shown
    assert {path for path in set(tiny_experiment.parent.rglob("*")) - before if "__pycache__" not in path.parts} == set()


def test_the_report_as_json(tiny_experiment: Path, tmp_path: Path):
    done = tiny_run.run("check", "tiny.yaml", "phases.1.epochs=2", "--json", folder=tmp_path)
    assert done.code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    told = json.loads(done.stdout)
    assert told["model"] == {"base": "model", "model_type": "bert", "parameters": 26843, "licence": None, "fresh": ["head"]}
    assert told["data"]["rows"] == {"train": 72, "validation": 24, "test": 24} and told["data"]["widths"] == [20]
    assert told["data"]["labels"]["test"] == {"market": 8, "screen": 8, "sport": 8}
    assert [(phase["steps"], phase["steps_per_epoch"]) for phase in told["phases"]] == [(10, 5), (10, 5)]


def test_copies_and_contradictions_are_told(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    for label, name in (("sport", "a"), ("sport", "b"), ("screen", "c")):
        Path("texts", label, f"{name}.txt").write_text("the same words")
    assert main(["check", "tiny.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "1 contents occur more than once (3 rows), each kept in one split" in shown
    assert "have the same content but different labels: screen, sport" in shown


def test_a_head_that_fits_is_kept(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    for old, new in zip(("market", "screen", "sport"), ("calm", "glad", "sad"), strict=True):
        Path("texts", old).rename(Path("texts", new))
    assert main(["check", "tiny.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["fresh"] == []
    assert main(["check", "tiny.yaml", "model.head=new", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["fresh"] == ["head"]


def test_a_tracker_that_cannot_work_is_found_before_training(
    tiny_experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["train", "tiny.yaml", "tracking=[tensorboard]"]) == 2
    assert capsys.readouterr().err == (
        'error: tracking: kind tensorboard needs the package tensorboardX; install it with: pip install "jaxtune[track]"\n'
    )
    assert not Path("runs").exists()
