"""Language models from YAML to report on a tiny llama: check, preview, train, resume, evaluate, predict, export, report, compare, watch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_language
import tiny_run
import yaml
from safetensors.numpy import load_file

import jaxtune
from jaxtune.api import evaluate, load_model, predict
from jaxtune.cli.main import main
from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.compare import compare
from jaxtune.evaluation.report import write_report
from jaxtune.evaluation.watch import Runs
from jaxtune.experiment import Experiment
from jaxtune.generating import generate, stream
from jaxtune.models.generation import Generation
from jaxtune.run import Result, resume
from jaxtune.soup import soup

ANSWERS = {"every_steps": 3, "answers": {"rows": 3, "generation": {"max_new_tokens": 4}, "metrics": ["rouge"]}}
Command = Callable[..., dict[str, Any]]
CHAT = {"kind": "causal_lm", "messages": "messages"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tiny_language.write_model(folder / "model")
    tiny_language.write_data(folder / "data.jsonl")
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("JAXTUNE_CACHE", str(home / "cache"))


def train(values: dict[str, Any], name: str, **more: Any) -> Result:
    return jaxtune.run(Experiment.model_validate(values), name=name, **more)


def chat(steps: int = 8, **more: Any) -> dict[str, Any]:
    return tiny_language.experiment(CHAT, steps, data={"packing": "best_fit"}, **more)


@pytest.fixture(scope="module")
def chatted(home: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("JAXTUNE_CACHE", str(home / "cache"))
        return train(chat(evaluation=ANSWERS), "chat")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`jaxtune WORDS --json`, and the object that it prints."""

    def call(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_it_learns_and_writes_down_what_it_answers(chatted: Result) -> None:
    rows = [json.loads(line) for line in (chatted.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "validation"]
    assert losses[-1] < losses[0]
    assert chatted.test["perplexity"] == pytest.approx(np.exp(chatted.test["loss"]), rel=1e-5)
    assert 0 <= chatted.test["token_accuracy"] <= 1 and "rouge_l" in chatted.test
    told = [json.loads(line) for line in (chatted.folder / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in told} == {0, 3, 6, 8} and len(told) == 12
    assert len({row["row"] for row in told}) == 3 and {"prompt", "reference", "generated", "scores", "ended"} <= told[0].keys()
    facts = json.loads((chatted.folder / "facts.json").read_text())["learned"]
    assert 0 < facts["trained"] < facts["tokens"] and len(facts["template"]) == 64


def test_predictions_hold_every_example(chatted: Result) -> None:
    table = pq.ParquetFile(chatted.folder / "predictions" / "test.parquet").read().to_pydict()
    assert len(table["row"]) == 12 and {"loss", "target_tokens", "total_loss", "right_tokens", "tokens", "key"} <= table.keys()
    tokens = np.array(table["target_tokens"])
    assert np.dot(table["loss"], tokens) / tokens.sum() == pytest.approx(chatted.test["loss"], rel=1e-5)
    assert (np.array(table["tokens"]) > tokens).all()


def test_the_report_shows_answers_and_no_classes(chatted: Result) -> None:
    page = (chatted.folder / "report.html").read_text()
    assert 'id="samples"' in page and "ROUGE-L" in page and "before training" in page
    for absent in ('id="confusion"', 'id="classes"', 'id="calibration"', "kept no predictions"):
        assert absent not in page
    assert (chatted.folder / "advice.json").is_file()
    write_report(chatted.folder)


def test_killed_and_resumed_it_ends_with_the_same_bits(home: Path) -> None:
    values = chat(evaluation=ANSWERS)
    whole = train(values, "whole")

    def fall(event: Any) -> None:
        if getattr(event, "step", 0) == 5 and type(event).__name__ == "Stepped":
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        train(values, "broken", watch=fall)
    again = resume(home / "runs" / "broken")
    assert again.test == whole.test and again.validation == whole.validation
    one, other = (load_file(found.export / "model.safetensors") for found in (whole, again))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    samples = [[json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()] for run in (whole, again)]
    assert samples[0] == samples[1]


def test_the_export_is_a_base_that_computes_the_same(chatted: Result, home: Path) -> None:
    names = {path.name for path in chatted.export.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert set(load_file(chatted.export / "model.safetensors")) == set(load_file(home / "model" / "model.safetensors"))
    values = chat(1)
    values["model"]["base"] = str(chatted.export)
    values["phases"][0]["optimizer"]["schedule"]["rate"] = 1e-12
    again = train(values, "again")
    assert again.test["loss"] == pytest.approx(chatted.test["loss"], rel=1e-5)


def test_evaluated_again(chatted: Result, command: Command) -> None:
    found = evaluate(chatted.folder, "test")
    assert found.metrics["loss"] == pytest.approx(chatted.test["loss"], rel=1e-6)
    assert command("evaluate", str(chatted.folder))["metrics"]["loss"] == pytest.approx(chatted.test["loss"], rel=1e-6)


def test_check_and_preview(command: Command) -> None:
    values = chat()
    values["data"]["max_tokens"] = 96  # nothing is cut
    Path("chat.yaml").write_text(yaml.safe_dump(values))
    found = command("check", "chat.yaml")
    assert 0 < found["data"]["trained_share"] < 1 and len(found["data"]["template"]) == 64
    shown = command("preview", "chat.yaml", "--count", "2")["examples"]
    assert all(any(part["trained"] for part in one["stretches"]) for one in shown)
    for one in shown:
        learned = "".join(part["text"] for part in one["stretches"] if part["trained"])
        assert learned.endswith("<|im_end|>") and "user" not in learned


def test_predicting_in_python_and_by_command(chatted: Result, command: Command) -> None:
    loaded = load_model(chatted.folder)
    written = generate(loaded, ["7 sun moon", "8 tree"])
    assert len(written.texts) == 2
    assert "".join(stream(loaded, "7 sun moon")).strip() == written.texts[0]
    assert command("predict", str(chatted.folder), "--prompt", "7 sun moon")["answer"].strip() == written.texts[0]
    Path("new.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "8 tree"}]}) + "\n")
    assert command("predict", str(chatted.folder), "new.jsonl", "-o", "out.jsonl")["rows"] == 1
    assert json.loads(Path("out.jsonl").read_text())["answer"] == written.texts[1]


def test_beams_come_in_one_piece(chatted: Result) -> None:
    settings = Generation(beams=2, max_new_tokens=4)
    assert list(stream(chatted.folder, "7 sun moon", settings)) == list(generate(chatted.folder, ["7 sun moon"], settings).texts)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "found neither"),
        (("new.jsonl",), "found INPUT new.jsonl"),
        (("--prompt", "a", "-o", "b.csv"), "found -o b.csv, --prompt a"),
        (("--prompt", "a", "--set", "temperature=1", "top_k=2"), "found INPUT top_k=2, --prompt a; every setting has a --set of its own"),
    ],
)
def test_words_that_ask_for_nothing(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "runs/chat", *words]) == 2
    assert f"expected either INPUT with -o OUT, or --prompt TEXT; {told}" in capsys.readouterr().err


def test_check_tells_of_adapters_and_packing(capsys: pytest.CaptureFixture[str]) -> None:
    values = chat()
    values["model"]["adapter"] = {"kind": "lora", "rank": 2, "targets": ["*.q"]}
    values["phases"][0]["train"] = ["*.lora_*"]
    Path("lora.yaml").write_text(yaml.safe_dump(values))
    assert main(["check", "lora.yaml"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "model   model (llama, 41,120 parameters)",
        "adapter lora, 256 parameters beside 2 dense layers",  # 2 layers x 2 x 32 x rank 2
        "fresh   nothing: every parameter comes from the checkpoint",
        "texts are packed into rows of ",
        "rows are cut: what they say at their end is not learned",
    ):
        assert line in shown


def test_answers_that_no_row_has_room_for_are_refused_before_anything_is_written(home: Path) -> None:
    answers = {"every_steps": 3, "answers": {"generation": {"max_new_tokens": 120}}}
    with pytest.raises(
        ConfigError, match=r"evaluation.answers \(validation\): none of 12 rows can be answered: .* 128 positions"
    ) as caught:
        train(chat(evaluation=answers), "no-room")
    assert len(caught.value.problems) == 2 and not (home / "runs" / "no-room").exists()


def test_an_encoder_writes_nothing(home: Path) -> None:
    tiny_run.write_model(home / "encoder")
    values = chat()
    values["model"]["base"] = "encoder"
    with pytest.raises(ConfigError, match=r"model.base encoder is a bert model, which predicts no next token; choose a decoder"):
        train(values, "encoder")


def test_watched_and_compared(chatted: Result) -> None:
    runs = Runs(chatted.folder.parent)
    runs.refresh()
    assert runs.table()
    with pytest.raises(ConfigError, match="are causal_lm runs, whose examples carry no labels to compare by"):
        compare(chatted.folder, chatted.folder)


# -- pairs and a teacher ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ipo", "orpo"])  # dpo: below
def test_preferences_are_learned(loss: str) -> None:
    values = tiny_language.experiment({"kind": "preference", "loss": loss, "beta": 0.3, "as_chat": loss == "ipo"}, 9)
    values["phases"][0]["optimizer"]["schedule"]["rate"] = 0.002
    result = train(values, loss)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    margins = [row["reward_margin"] for row in rows if row["split"] == "validation"]
    assert margins[-1] > margins[0]
    assert 0 <= result.test["preference_accuracy"] <= 1
    table = pq.ParquetFile(result.folder / "predictions" / "test.parquet").read().to_pydict()
    assert all(len(value) == 2 for value in table["reward"]) and isinstance(table["tokens"][0], int)
    assert evaluate(result.folder, "test").metrics["loss"] == pytest.approx(result.test["loss"], rel=1e-5)
    pairs = predict(load_model(result.folder), [{"prompt": "1 sun moon", "chosen": "moon sun", "rejected": "no"}])
    assert pairs.more["log_probability"].shape == (1, 2)


def test_a_broken_dpo_run_goes_on(home: Path) -> None:
    values = tiny_language.experiment({"kind": "preference"}, 6)
    whole = train(values, "dpo-whole")

    def fall(event: Any) -> None:
        if getattr(event, "step", 0) == 3 and type(event).__name__ == "Stepped":
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        train(values, "dpo-broken", watch=fall)
    assert resume(home / "runs" / "dpo-broken").test == whole.test


def test_a_teacher_is_followed(home: Path) -> None:
    tiny_language.write_model(home / "teacher", 1)
    task = {**CHAT, "teacher": {"base": "teacher", "top_k": 8}}
    result = train(tiny_language.experiment(task, 6, data={"packing": "best_fit"}), "taught")
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < losses[0] and len(list((home / "cache" / "teacher").iterdir())) == 1


def test_an_adapter_learns_preferences(home: Path) -> None:
    """A LoRA run on pairs: its reference is the base, for its adapter begins as nothing."""
    values = tiny_language.experiment({"kind": "preference"}, 3)
    values["model"]["adapter"] = {"kind": "lora", "rank": 2}
    values["phases"][0]["train"] = ["*.lora_*"]
    result = train(values, "lora")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in result.export.rglob("*")}
    with pytest.raises(ConfigError, match=r"lora@3 has an adapter, .*; leave --greedy out"):
        soup([str(result.folder)] * 2, home / "soup", greedy=True)
