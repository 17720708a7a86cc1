"""`jaxtune train` from end to end on a tiny experiment: one process, one run, everything that it leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_run
from safetensors.numpy import load_file
from tiny_run import Trained

from jaxtune.cli.main import main
from jaxtune.config.read import read


def rows(run: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def test_it_says_one_json_object_and_ends_well(trained: Trained):
    assert trained.done.code == 0, trained.done.stderr
    told = trained.done.told
    assert trained.done.stdout.count("\n") == 1 and Path(told["run"]).resolve() == trained.run.resolve()
    result = json.loads((trained.run / "result.json").read_text())
    assert {key: told[key] for key in result} == result
    assert Path(told["export"]) == Path(told["run"]) / "export"


def test_result_holds_the_best_checkpoint_and_the_speed(trained: Trained):
    result = json.loads((trained.run / "result.json").read_text())
    validation = [row for row in rows(trained.run, "metrics.jsonl") if row["split"] == "validation"]
    best = max(validation, key=lambda row: row["f1"])
    assert result["best_step"] == best["step"]
    assert {key: best[key] for key in result["validation"]} == result["validation"]
    assert result["test"]["accuracy"] > 0.5  # a guess is right in a third of the cases
    assert set(result["test"]) >= {"loss", "accuracy", "f1", "expected_calibration_error", "precision_per_class", "support"}
    assert sum(result["test"]["support"]) == 24
    for name in ("seconds", "examples_per_second", "tokens_per_second", "compile_seconds", "peak_memory_bytes"):
        assert math.isfinite(result[name]) and result[name] > 0, name


def test_metrics_have_a_row_a_step_and_an_evaluation_each(trained: Trained):
    found = rows(trained.run, "metrics.jsonl")
    training = [row for row in found if row["split"] == "train"]
    last = json.loads((trained.run / "result.json").read_text())["steps"]
    assert [row["step"] for row in training] == list(range(1, last + 1))
    for row in training:
        assert {"loss", "learning_rate", "gradient_norm", "examples", "tokens", "seconds", "wait_seconds"} <= set(row)
    assert [row["step"] for row in found if row["split"] == "validation"] == [3, 6, 9, 10, *range(13, last + 1, 3)]
    assert last < 55  # early stopping


def test_events_tell_what_happened_and_why(trained: Trained):
    events = rows(trained.run, "events.jsonl")
    by_kind = {kind: [event for event in events if event["event"] == kind] for kind in {event["event"] for event in events}}
    assert [event["phase"] for event in by_kind["phase"]] == [0, 1] and len(by_kind["compiled"]) == 2
    assert by_kind["skipped"] and all(event["loss"] == "NaN" for event in by_kind["skipped"])
    reasons = {event["decision"]: event["reason"] for event in by_kind["decision"]}
    assert set(reasons) == {"ScaleRate", "NextPhase"} and "f1 has stood still for" in reasons["ScaleRate"]
    saved, durable = ([event["step"] for event in by_kind[kind]] for kind in ("saving", "durable"))
    assert {4, 8, 10} <= set(saved) and durable[-1] == saved[-1]
    assert saved[-1] == json.loads((trained.run / "result.json").read_text())["steps"]  # the end of a phase is saved, also an early one
    assert [event["split"] for event in by_kind["measured"]] == ["validation", "test"]


def test_state_and_surroundings(trained: Trained):
    state = json.loads((trained.run / "state.json").read_text())
    last = json.loads((trained.run / "result.json").read_text())["steps"]
    assert (state["status"], state["exit_code"], state["last_durable_step"]) == ("done", 0, last)
    (start,) = json.loads((trained.run / "environment.json").read_text())["starts"]
    assert start["versions"]["jax"] and start["devices"] == ["cpu:0"] and len(start["data"]) == 64 and start["licence"] is None
    assert start["command"][1:] == ["train", "tiny.yaml", "--json"]
    assert not (trained.run / "lock").exists()


def test_the_experiment_is_kept_as_given_and_as_understood(trained: Trained):
    assert (trained.run / "experiment.yaml").read_text() == (trained.folder / "tiny.yaml").read_text()
    assert "tiny_parts:Stumbling" in (trained.run / "resolved.yaml").read_text()


def test_resolved_reads_back(trained: Trained, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(trained.folder)
    one, other = (read(path, [], "jaxtune.experiment:Experiment") for path in (trained.run / "resolved.yaml", trained.folder / "tiny.yaml"))
    assert one == other


@pytest.mark.parametrize("split", ["validation", "test"])
def test_predictions_give_the_metrics(trained: Trained, split: str):
    table = pq.read_table(trained.run / "predictions" / f"{split}.parquet").to_pydict()
    assert list(table) == [
        "row",
        "predicted",
        "confidence",
        *(f"probability {name}" for name in tiny_run.LABELS),
        "label",
        "loss",
        "key",
        "tokens",
    ]
    assert table["row"] == sorted(set(table["row"])) and len(table["row"]) == 24
    assert table["label"] == [list(tiny_run.LABELS)[row // 40] for row in table["row"]]
    right = np.mean([found == label for found, label in zip(table["predicted"], table["label"], strict=True)])
    measured = json.loads((trained.run / "result.json").read_text())[split]
    assert right == measured["accuracy"] and np.mean(table["loss"]) == pytest.approx(measured["loss"], rel=1e-5)
    probabilities = np.array([table[f"probability {name}"] for name in tiny_run.LABELS])
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    assert [list(tiny_run.LABELS)[best] for best in probabilities.argmax(0)] == table["predicted"]


def test_the_export_is_a_hugging_face_folder(trained: Trained):
    export, base = trained.run / "export", trained.folder / "model"
    assert {path.name for path in export.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    config = json.loads((export / "config.json").read_text())
    assert config["id2label"] == {"0": "market", "1": "screen", "2": "sport"} and config["problem_type"] == "single_label_classification"
    assert config["architectures"] == ["BertForSequenceClassification"] and config["hidden_size"] == 32
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (export, base))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: tensor.shape for name, tensor in theirs.items()}
    same = {name for name in ours if ours[name].tobytes() == theirs[name].tobytes()}
    frozen = {name for name in ours if "embeddings" in name and "word_embeddings" not in name}
    assert same == frozen and len(frozen) == 4
    assert (export / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    card = (export / "README.md").read_text()
    assert card.startswith("---\n") and "accuracy" in card and "market" in card and "name: tiny" in card


def test_a_second_run_gets_a_folder_of_its_own(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    words = [
        "train",
        "tiny.yaml",
        "phases=[{steps: 2, train: [head.*], optimizer: {kind: sgd, schedule: {kind: constant, rate: 0.1}}}]",
        "--runs-dir",
        "r",
    ]
    assert main([*words, "--name", "mine"]) == 0
    before = snapshot(Path("r/mine"))
    capsys.readouterr()
    assert main([*words, "--name", "mine"]) == 0
    shown = capsys.readouterr().out
    assert snapshot(Path("r/mine")) == before
    assert json.loads(Path("r/mine-2/state.json").read_text())["status"] == "done"
    assert Path("r/mine-2/experiment.yaml").read_text().endswith(f"\n# on the command line: {words[2]}\n")
    for part in (
        "phase 1/1: head.*, 2 steps",
        "(frozen)",
        "step of 16 rows x 20 tokens",
        "test of the best checkpoint (step 2)",
        "r/mine-2",
        "export",
    ):
        assert part in shown


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_that_fails_says_so_in_its_folder(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    words = ["phases=[{steps: 9, train: [head.*], skip_limit: 1, optimizer: {kind: sgd, schedule: {kind: constant, rate: 0.1}}}]"]
    assert main(["train", "tiny.yaml", *words]) == 71
    assert "loss or gradients were not finite" in capsys.readouterr().err
    state = json.loads(Path("runs/tiny/state.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 71) and "examples [" in state["reason"]
    assert not Path("runs/tiny/export").exists() and not Path("runs/tiny/result.json").exists()
