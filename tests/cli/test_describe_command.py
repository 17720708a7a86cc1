"""`jaxtune describe`: families and runs; settings, tables and kinds are tested with jaxtune.config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_run
from tiny_run import Trained

from jaxtune.cli.main import main
from jaxtune.models import FAMILIES


def test_a_run(trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(trained.folder)
    assert main(["describe", "runs/tiny"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((trained.run / "result.json").read_text())
    for part in (
        'A run of the experiment "tiny".',
        "status      done",
        "base        model",
        "task        text_classification, best by f1",
        "phase 1     2 epochs of head.* with adamw",
        f"steps       {result['steps']}, the best is {result['best_step']}",
        f"f1 {result['test']['f1']:.4f}",
        "checkpoints",
    ):
        assert part in shown


def test_a_run_that_stopped_without_its_base(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tiny_run.copy(trained.run, tmp_path / "run")
    (run / "result.json").unlink()
    (run / "state.json").write_text(json.dumps({"status": "preempted", "reason": "stopped after step 8", "last_durable_step": 8}))
    assert main(["describe", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["kinds"]
    assert (facts["status"], facts["because"], facts["last saved"]) == ("preempted", "stopped after step 8", "step 8")
    assert "test" not in facts


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, capsys: pytest.CaptureFixture[str]):
    assert main(["describe", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["title"] == f"families/{name}" and "config.json" in told["text"]
    assert any(path.startswith("head.") for path in told["kinds"]) and any("{" in path for path in told["kinds"])


def test_all_families(capsys: pytest.CaptureFixture[str]):
    assert main(["describe", "families"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name} " in shown for name in FAMILIES)


def test_a_kind_is_still_a_kind(capsys: pytest.CaptureFixture[str]):
    assert main(["describe", "adamw"]) == 0
    assert capsys.readouterr().out.startswith("optimizers/adamw\n")
    assert main(["describe", "brt"]) == 2
