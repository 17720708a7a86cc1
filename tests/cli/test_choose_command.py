"""`jaxtune choose`: what it prints, its JSON, and what is wrong on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxtune.cli.main import main


def test_it_ranks_and_tells(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    words = ["choose", "tiny.yaml", "data.batch_size=24", "--base", "model", "--base", "random:model", "--base", "no/where"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for said in (
        "1 of 3  model: macro F1 0.",
        "probe, macro F1",
        "GFLOP",
        "tokens per word",
        "longest text",
        "no/where",
        "failed",
        "tiny-choose",
    ):
        assert said in text, said
    assert "On 72 of 72 training rows, 2 x 5 folds" in text
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"].endswith("runs/tiny-choose-2")
    assert {each["name"] for each in told["candidates"]} == {"model", "random:model"}
    assert told["left_out"][0]["name"] == "no/where"
    assert all(each["cost"]["rows"] == 24 for each in told["candidates"])
    assert json.loads(Path("runs/tiny-choose-2/choose.json").read_text())["verdict"] == told["verdict"]


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
