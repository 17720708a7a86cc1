"""`jaxtune preview`: examples as the model sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxtune.cli import preview
from jaxtune.cli.main import main
from jaxtune.cli.output import Output
from jaxtune.data.transforms.tokenize import Tokenizer


def test_what_the_model_sees(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", "tiny.yaml", "-n", "2", "--split", "test"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("label: ") == 2 and shown.count(" tokens\n") == 2
    assert "[CLS] | " in shown and "[SEP]" in shown


def test_as_json_with_rows_that_can_be_looked_up(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", "tiny.yaml", "-n", "100", "--split", "validation", "data.max_tokens=8", "data.widths=auto", "--json"]) == 0
    out = capsys.readouterr().out
    told = json.loads(out)
    assert out.count("\n") == 1 and told["split"] == "validation" and len(told["examples"]) == 24
    files = sorted(Path("texts").rglob("*.txt"))
    for example in told["examples"]:
        words = files[example["row"]].read_text().split()
        assert example["label"] == files[example["row"]].parent.name
        assert example["full_length"] == len(words) + 2 and example["tokens"] == min(8, len(words) + 2)
        assert example["text"].removeprefix("[CLS] ").removesuffix(" [SEP]").split() == words[:6]


def test_training_examples_are_shown_augmented(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    words = ["preview", "tiny.yaml", "-n", "10", "--json"]
    assert main([*words, "data.augment=[]"]) == 0
    plain = json.loads(capsys.readouterr().out)["examples"]
    assert main([*words, "data.augment=[{kind: random_deletion, share: 0.5}]"]) == 0
    changed = json.loads(capsys.readouterr().out)["examples"]
    assert [example["row"] for example in plain] == [example["row"] for example in changed]
    assert sum(len(a["text"]) > len(b["text"]) for a, b in zip(plain, changed, strict=True)) > 5


def test_no_such_split(tiny_experiment: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["preview", "tiny.yaml", "--split", "tset"]) == 2
    assert capsys.readouterr().err == 'error: --split: "tset" does not exist; did you mean "test"? (splits: train, validation, test)\n'


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_learned_of_a_text_is_marked(colour: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """And escape sequences in the data do not reach the terminal."""
    monkeypatch.setattr(preview, "coloured", lambda: colour)
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "references" / "chat")
    parts = ["What is\n\x1b[31mthe capital?", "Paris<|im_end|>", "x" * 500]
    ids = [tokenizer.backend.encode(part).ids for part in parts]
    weight = np.repeat([0.0, 0.5, 0.0], [len(part) for part in ids])
    told = preview.tell_targets(Output(), tokenizer, {"tokens": np.concatenate(ids), "token_weight": weight})
    first, second = capsys.readouterr().out.splitlines()
    assert f"learned: {len(ids[1])} tokens" in first
    long = "x" * 200 + " … " + "x" * 200
    if colour:
        assert second == f"  \033[2mWhat is ⏎ the capital?\033[0m\033[1;32mParis<|im_end|>\033[0m\033[2m{long}\033[0m"
    else:
        assert second == f"  What is ⏎ the capital?⟦Paris<|im_end|>⟧{long}"
    assert told["trained_tokens"] == len(ids[1]) and [(one["text"], one["trained"]) for one in told["stretches"]] == [
        (parts[0], False), (parts[1], True), (parts[2], False),
    ]  # fmt: skip
