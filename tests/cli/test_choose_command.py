"""`jaxtune choose`: what it prints, its JSON, and what is wrong on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import Trained

from jaxtune.cli.main import main

BASE = "runs/tiny/export"  # trained on these topics


def test_it_ranks_and_tells(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(trained.folder)
    bases = [word for base in (f"random:{BASE}", BASE, "no/where") for word in ("--base", base)]
    words = ["choose", "tiny.yaml", *bases, "--runs-dir", str(tmp_path)]
    assert main(words) == 0
    text = capsys.readouterr().out
    for said in (
        f"1 of 3  random:{BASE}: macro F1 0.",
        f"2 of 3  {BASE}: macro F1 ",
        "probe, macro F1",
        "GFLOP",
        "tokens per word",
        "longest text",
        "failed",
        "On 72 of 72 training rows, 2 x 5 folds",
        f"{BASE} comes first: macro F1 ",
        f"written to {tmp_path / 'tiny-choose'}",
    ):
        assert said in text, said


def test_a_random_candidate_is_the_same_architecture_with_other_weights(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Same costs, worse scores; a licence concerns weights, so no filter on it takes a random candidate away."""
    monkeypatch.chdir(trained.folder)
    words = ["choose", "tiny.yaml", "data.batch_size=24", "--base", f"random:{BASE}", "--base", BASE, "--runs-dir", str(tmp_path), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "tiny-choose")
    written = json.loads((tmp_path / "tiny-choose" / "choose.json").read_text())
    assert all(written[name] == told[name] for name in ("verdict", "candidates", "left_out"))
    first, second = told["candidates"]
    assert [(each["name"], each["random"]) for each in (first, second)] == [(BASE, False), (f"random:{BASE}", True)]
    for name in ("parameters", "trained", "step_flops", "step_memory_bytes"):
        assert first["cost"][name] == second["cost"][name]
    assert first["tokenizer"] == second["tokenizer"] and first["cost"]["rows"] == 24
    assert second["behind_best"]["mean"] > 0
    for measure, name in (("probe", "mean"), ("neighbours", "mean"), ("logme", "value")):
        assert first["scores"][measure][name] > second["scores"][measure][name] + 0.02, measure
    assert main([*words, "--licence", "no-such-licence"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["candidates"]] == [f"random:{BASE}"] and told["left_out"][0]["why"] == "filtered"
    assert told["candidates"][0]["embeddings_from_cache"] and told["candidates"][0]["scores"] == second["scores"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no candidates: name them with --base"),
        (["--base", "random:"], 'found "random:"'),
        (["--base", "model", "--max-parameters", "few"], "--max-parameters"),
        (["--base", "model", "--max-parameters", "1k"], "no candidate could be compared"),
        (["--base", "model", "--licence", "mit"], "licence not named in its model card"),
        (["--from-catalogue", "--licence", "no-such-licence"], "licence apache-2.0 in the catalogue"),
    ],
)
def test_what_is_wrong_is_said(tiny_experiment: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str):
    assert main(["choose", "tiny.yaml", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()
