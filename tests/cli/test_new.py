from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from jaxtune.cli.columns import classes, find_problem
from jaxtune.cli.look import find_source
from jaxtune.cli.main import main
from jaxtune.config.read import read

WORDS = "the cat sat on a mat and saw some great bad movie with fine actors".split()  # noqa: SIM905

Made = Callable[..., Any]


def texts(count: int, longest: int = 40) -> list[str]:
    dice = random.Random(count)
    return [f"{i} " + " ".join(dice.choices(WORDS, k=dice.randint(1, longest))) for i in range(count)]


def write_csv(path: Path, delimiter: str = ",", **columns: list[Any]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Made:
    """Runs `jaxtune new` in an empty folder and reads what it wrote as the real experiment: (result, experiment, text)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Any:
        code = main(["new", "--data", *words, "--json"])
        told = json.loads(capsys.readouterr().out)
        if code:
            return code, told["error"]["message"]
        text = Path(told["written"]).read_text()
        experiment = read(told["written"], [], "jaxtune.experiment:Experiment")
        experiment.data.source.open()
        return told, experiment, text

    return run


def test_a_table_with_one_class_per_row(new: Made, tmp_path: Path):
    n = 1500
    stars = [random.Random(i).choice([1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]) for i in range(n)]
    write_csv(tmp_path / "Hotel Reviews.csv", ";", id=list(range(n)), Review=texts(n), stars=stars, city=["x"] * n)
    told, experiment, text = new("Hotel Reviews.csv")
    assert told["written"] == "hotel-reviews.yaml" and experiment.name == "hotel-reviews"
    assert (told["rows"], told["text"], told["label"], told["problem"]) == (1500, "Review", "stars", "single_label")
    assert list(told["classes"]) == ["2", "1", "3"] or list(told["classes"]) == ["2", "3", "1"]
    assert experiment.data.source.delimiter == ";" and experiment.data.source.path == "Hotel Reviews.csv"
    assert experiment.task.loss.class_weights == "balanced" and experiment.data.split.by == "stars"
    assert experiment.data.max_tokens == 64  # 98 % of the texts have 41 words or fewer, times 1.4, in steps of 16
    assert [phase.train for phase in experiment.phases] == [("head.*",), ("*",)]
    assert text.startswith('# 1,500 rows: one of 3 classes in "stars" from "Review"\n') and "times the smallest" in text
    assert all(len(line) < 140 for line in text.splitlines())


def test_json_lines_with_several_classes_and_two_texts(new: Made, tmp_path: Path):
    dice = random.Random(0)
    rows = [
        {"premise": a, "hypothesis": b, "tags": dice.sample("abcd", dice.randint(0, 3)), "id": i}
        for i, (a, b) in enumerate(zip(texts(200), texts(201), strict=False))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told, experiment, _ = new("pairs.jsonl", "-o", "mine.yaml", "--base", "some/base")
    assert (told["written"], told["text"], told["pair"], told["label"], told["problem"]) == (
        "mine.yaml",
        "premise",
        "hypothesis",
        "tags",
        "multi_label",
    )
    assert set(told["classes"]) == set("abcd") and experiment.task.problem == "multi_label" and experiment.model.base == "some/base"
    assert type(experiment.data.split).__name__ == "Random"


def test_a_number_to_predict_and_a_parquet_file(new: Made, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"title": ["t"] * 90, "body": texts(90), "score": [i / 7 for i in range(90)]}), tmp_path / "news.parquet")
    told, experiment, _ = new("news.parquet")
    assert (told["text"], told["label"], told["problem"]) == ("body", "score", "regression")
    assert experiment.task.best == "mean_squared_error" and experiment.data.batch_size == 16


def test_columns_that_name_the_split_or_belong_together(new: Made, tmp_path: Path):
    labels = ["yes", "no"] * 150
    write_csv(tmp_path / "a.csv", text=texts(300), label=labels, split=["train", "train", "dev", "test"] * 75)
    _, experiment, _ = new("a.csv")
    assert experiment.data.split.model_dump(include={"by", "names"}) == {"by": "split", "names": {"dev": "validation"}}
    write_csv(tmp_path / "b.csv", text=texts(300), label=labels, split=["train", "train", "train", "test"] * 75)
    assert type(new("b.csv")[1].data.split).__name__ == "Stratified"  # without validation rows nothing could be chosen
    write_csv(tmp_path / "c.csv", text=texts(300), label=labels, patient_id=[str(i // 5) for i in range(300)])
    assert new("c.csv")[1].data.split.by == "patient_id"


def test_a_folder_of_texts_in_mixed_encodings(new: Made, tmp_path: Path):
    for name in ("sport", "tech"):
        (tmp_path / "bbc" / "data" / name).mkdir(parents=True)
        for i, text in enumerate(texts(30)):
            (tmp_path / "bbc" / "data" / name / f"{i}.txt").write_bytes(text.encode() + (b" \xa3" if i == 29 else b""))
    told, experiment, _ = new("bbc/data")
    assert told["written"] == "bbc-data.yaml" and told["classes"] == {"sport": 30, "tech": 30}
    assert experiment.data.source.encoding == ("utf-8", "cp1252")


def test_folders_of_images(new: Made, tmp_path: Path):
    from PIL import Image

    for split in ("train", "test"):
        for name in "ab":
            (tmp_path / "digits" / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = np.random.default_rng(i).integers(0, 255, (10, 9), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "digits" / split / name / f"{i}.png")
    told, experiment, _ = new("digits")
    assert told["task"] == "image_classification" and experiment.data.source.path == {"train": "digits/train", "test": "digits/test"}
    assert experiment.data.split.validation == 0.1 and experiment.data.source.channels == 1
    assert (
        experiment.model.base.config["image_size"] == 12
        and experiment.model.base.config["num_channels"] == 1
        and len(experiment.phases) == 1
    )
    (tmp_path / "photos").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir()
        for i in range(6):
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (90, 80, 3), np.uint8)).save(tmp_path / "photos" / name / f"{i}.jpg")
    _, experiment, _ = new("photos")
    assert experiment.model.base == "google/vit-base-patch16-224-in21k" and experiment.data.split.by == "label"


def test_nothing_is_written_over(new: Made, tmp_path: Path):
    write_csv(tmp_path / "a.csv", text=texts(40), label=["x", "y"] * 20)
    new("a.csv")
    (tmp_path / "a.yaml").write_text("mine")
    assert new("a.csv") == (2, "a.yaml exists already, nothing was written; choose another name with -o")
    assert (tmp_path / "a.yaml").read_text() == "mine"
    assert new("a.csv", "-o", "no/where.yaml") == (
        2,
        "no/where.yaml cannot be written (No such file or directory); choose another place with -o",
    )


def test_the_user_knows_better(new: Made, tmp_path: Path):
    write_csv(tmp_path / "a.csv", text=texts(40), label=["x", "y"] * 20, other=["u", "v", "w", "x"] * 10)
    told, _, _ = new("a.csv", "--text", "other", "--label", "other", "-o", "b.yaml")
    assert (told["text"], told["label"]) == ("other", "other")
    assert new("a.csv", "--label", "lable") == (2, '--label: no column "lable"; did you mean "label"? (columns: text, label, other)')
    assert (
        new("a.csv", "--task", "image_classification")[1]
        == '--task: "image_classification"; a.csv holds texts, which asks for text_classification'
    )
    assert new("a.csv", "--task", "text")[1].startswith('--task: "text" is no task of jaxtune new')


def test_data_that_new_cannot_judge(new: Made, tmp_path: Path):
    write_csv(tmp_path / "no_label.csv", text=texts(40), other=[f"{i} unlike" for i in range(40)])
    assert new("no_label.csv")[1].startswith("--data: no column looks like a label: values repeat or are numbers (found other:")
    write_csv(tmp_path / "no_text.csv", a=list(range(40)), b=[1, 2] * 20)
    assert new("no_text.csv")[1] == "--data: no column holds text (columns: a, b); expected sentences in one of them"
    (tmp_path / "x.docx").write_text("x")
    assert "x.docx is no .csv, .tsv, .jsonl or .parquet file" in new("x.docx")[1]
    (tmp_path / "odd" / "inner").mkdir(parents=True)
    assert new("odd")[1].startswith("--data: odd holds inner; expected a folder per class")
    assert new("no_lable.csv")[1].endswith('did you mean "no_label.csv"?')


# -- language models --------------------------------------------------------------------------------------------------------


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answered(count: int) -> list[tuple[str, str]]:
    return list(zip(texts(count), [f"answer {i} is of a kind of its own" for i in range(count)], strict=True))


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_conversations(new: Made, tmp_path: Path):
    write_rows(tmp_path / "chats.jsonl", *[{"prompt": a, "id": str(n), "turns": talk(a, b)} for n, (a, b) in enumerate(answered(60))])
    told, experiment, text = new("chats.jsonl")
    assert (told["task"], told["columns"]) == ("causal_lm", {"messages": "turns"})
    assert experiment.task.messages == "turns" and experiment.task.chats and experiment.data.over_length == "drop"
    assert experiment.phases[0].train == ("*.lora_*",) and type(experiment.model.adapter).__name__ == "Lora"
    assert experiment.evaluation.answers.generation.max_new_tokens == 24  # 9 words of an answer
    assert '# 60 rows: conversations in "turns"' in text
    write_csv(tmp_path / "talks.csv", turns=[json.dumps(talk(a, b)) for a, b in answered(60)])
    assert new("talks.csv")[0]["columns"] == {"messages": "turns"}


def test_prompts_with_completions(new: Made, tmp_path: Path):
    rows = [{"instruction": a, "input": "behind it" if n % 3 else "", "output": b} for n, (a, b) in enumerate(answered(60))]
    write_rows(tmp_path / "alpaca.jsonl", *rows)
    told, experiment, _ = new("alpaca.jsonl")
    assert (told["task"], told["columns"]) == ("causal_lm", {"prompt": "instruction", "completion": "output"})
    (made,) = experiment.data.transforms
    assert made({**rows[1], "other": 1})["request"] == f"{rows[1]['instruction']}\n\nbehind it"
    assert (experiment.task.prompt, experiment.task.completion, experiment.task.as_chat) == ("request", "output", True)
    write_rows(tmp_path / "plain.jsonl", *[{**row, "input": ""} for row in rows])
    _, experiment, _ = new("plain.jsonl")
    assert experiment.task.prompt == "instruction" and not experiment.data.transforms


def test_answers_that_repeat_are_labels(new: Made, tmp_path: Path):
    write_rows(tmp_path / "yes.jsonl", *[{"question": a, "answer": "yes" if n % 3 else "no"} for n, (a, _) in enumerate(answered(60))])
    assert (new("yes.jsonl")[0]["task"], new("yes.jsonl", "-o", "b.yaml")[0]["label"]) == ("text_classification", "answer")


def test_pairs_and_plain_text(new: Made, tmp_path: Path):
    write_rows(tmp_path / "pairs.jsonl", *[{"question": a, "chosen": b, "rejected": f"no {b}"} for a, b in answered(60)])
    rows = [{"prompt": talk(a, b)[:1], "chosen": talk(a, b)[1:], "rejected": talk(a, "no")} for a, b in answered(60)]
    write_rows(tmp_path / "turns.jsonl", *rows)
    assert new("turns.jsonl")[0]["task"] == "preference"
    write_rows(tmp_path / "parts.jsonl", *[{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    assert new("parts.jsonl")[1].task.as_chat
    told, experiment, _ = new("pairs.jsonl")
    assert told["task"] == "preference" and (experiment.task.prompt, experiment.task.as_chat) == ("question", True)
    write_rows(tmp_path / "text.jsonl", *[{"text": a} for a, _ in answered(60)])
    assert new("text.jsonl")[1].endswith("name it with --label, or say --task causal_lm for a language model")
    _, experiment, _ = new("text.jsonl", "--task", "causal_lm", "--base", "mine")
    assert (experiment.task.text, experiment.model.base, experiment.evaluation.answers) == ("text", "mine", None)
    assert "preference needs columns prompt, chosen and rejected" in new("text.jsonl", "--task", "preference")[1]


def test_conversations_in_another_form(new: Made, tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    assert new("a.jsonl")[1].startswith('--data: "conversations" holds messages as {from, value}; expected {role, content}')


@pytest.mark.parametrize(
    ("values", "name", "problem"),
    [
        (["a", "b", "a"], "label", "single_label"),
        ([True, False], "label", "single_label"),
        (list(range(5)) * 10, "stars", "single_label"),
        (list(range(100)), "age", "regression"),
        ([0.5 * i for i in range(30)], "score", "regression"),
        (["0.0", "1.0"] * 10, "label", "single_label"),
        (["a|b", "b", "a", "a|b"] * 10, "label", "multi_label"),
        (["a, b", "b", "a"] * 10, "labels", "multi_label"),
        (["Smith, J.", "Doe, A.", "Roe, B."] * 10, "winner", "single_label"),
        ([["a"], []], "x", "multi_label"),
    ],
)
def test_what_a_label_asks_for(values: list[Any], name: str, problem: str):
    assert find_problem(values, name) == problem


def test_classes_are_counted():
    assert classes(["a", "b", "a", None, ""], "single_label") == {"a": 2, "b": 1}
    assert classes([["a", "b"], ["b"], []], "multi_label") == {"b": 2, "a": 1}
    assert classes([0.5], "regression") == {}


def test_delimiters_and_encodings(tmp_path: Path):
    for name, mark in {"a.csv": ",", "b.csv": "\t", "c.csv": "|", "d.tsv": "\t"}.items():
        write_csv(tmp_path / name, mark, text=texts(20), label=["x", "y"] * 10)
        assert find_source(str(tmp_path / name)).get("delimiter", ",") == mark
    (tmp_path / "e.csv").write_bytes("text,label\ncaf\xe9 bar,x\nb,y\n".encode("cp1252"))
    assert find_source(str(tmp_path / "e.csv"))["encoding"] == ["utf-8", "cp1252"]


def test_what_it_writes_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_model(tmp_path / "model")
    write_csv(tmp_path / "reviews.csv", text=texts(160, longest=6), label=["good", "bad"] * 80)
    assert main(["new", "--data", "reviews.csv", "--base", "model"]) == 0
    capsys.readouterr()
    assert main(["check", "reviews.yaml", "data.max_tokens=24", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sum(told["data"]["rows"].values()) == 160 and told["model"]["base"] == "model"
