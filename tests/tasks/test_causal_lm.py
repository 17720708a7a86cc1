"""Which settings of a language model go together, and what becomes of them and of the base's head."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_language
import yaml
from pydantic import ValidationError
from safetensors.numpy import load_file

from jaxtune.config.write import to_yaml
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.experiment import Experiment
from jaxtune.prepare import prepare
from jaxtune.session import Session
from jaxtune.tasks.causal_lm import CausalLM

CHAT = {"kind": "causal_lm", "messages": "messages"}
FORMS: list[dict[str, Any]] = [
    {"text": "t"},
    {"prompt": "p", "completion": "c"},
    {"prompt": "p", "completion": "c", "append_eos": False, "train_on": "all"},
    {"prompt": "p", "completion": "c", "as_chat": True, "system": "Be brief."},
    {"messages": "m", "turns": "last"},
    {"messages": "m", "tools": "t", "today": "2026-01-31"},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_resolved_experiment_is_read_again_as_it_was(form: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(tiny_language.experiment({"kind": "causal_lm", **form}))
    again = Experiment.model_validate(yaml.safe_load(to_yaml(experiment)))
    assert again.task == experiment.task
    assert isinstance(again.task, CausalLM) and again.task.train_on == ("all" if "text" in form else form.get("train_on", "answers"))
    assert again.task.append_eos == (not again.task.chats and form.get("append_eos", True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "found none"),
        ({"text": "t", "messages": "m"}, "found text, messages"),
        ({"prompt": "p", "text": "t"}, "prompt and completion go together"),
        ({"messages": "m", "append_eos": True}, "append_eos: the chat template ends its turns itself"),
        ({"text": "t", "train_on": "answers"}, "train_on: answers has no meaning for plain text"),
        ({"text": "t", "system": "s"}, "system: has no place without messages or as_chat"),
        ({"prompt": "p", "completion": "c", "turns": "last"}, "turns: has no effect without messages"),
        ({"prompt": "p", "completion": "c", "tools": "t"}, "tools: has no effect without messages"),
        ({"text": "t", "today": "2026-01-31"}, "today: has no place without messages or as_chat"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        CausalLM(**settings)


# -- the head ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_language.write_model(tmp_path / "model")
    tiny_language.write_data(tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_messages_may_stand_for_texts(home: Path) -> None:
    """As TRL's files have them: prompt and answer as lists of messages, and pairs whose answers bring the prompt along."""
    rows = [json.loads(line) for line in (home / "data.jsonl").read_text().splitlines()]
    spoken = [
        {
            "prompt": row["messages"][:1],
            "completion": row["messages"][1:],
            "chosen": row["messages"],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]
    (home / "spoken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spoken))
    for texts, task in (
        ("chosen", {"kind": "causal_lm", "prompt": "prompt", "completion": "completion", "as_chat": True}),
        (None, {"kind": "preference", "as_chat": True}),
    ):
        own = task if texts is None else {**task, "completion": texts}
        values = tiny_language.experiment(task)
        values["data"]["source"]["path"] = "spoken.jsonl"
        expected, found = by_row(tiny_language.experiment(own)), by_row(values)
        assert expected.keys() == found.keys() and len(found) == len(rows)
        for number, row in expected.items():
            for name, value in row.items():
                np.testing.assert_array_equal(found[number][name], value)
    values["task"]["as_chat"] = False
    with pytest.raises(DataError, match=r'field "prompt": 48 values are no text \(list\).*set as_chat: true'):
        prepare(Experiment.model_validate(values))


def by_row(values: dict[str, Any]) -> dict[int, dict[str, Any]]:
    splits = prepare(Experiment.model_validate(values)).splits
    rows = [examples.row(number) for examples in splits.values() for number in range(len(examples))]
    return {int(row["example_id"]): dict(row) for row in rows}


def open_session(values: dict[str, Any]) -> Session:
    experiment = Experiment.model_validate(values)
    return Session.open(prepare(experiment), experiment.mesh.build())


@pytest.mark.parametrize("task", [CHAT, {"kind": "preference"}])
def test_an_untied_head_comes_from_the_checkpoint(home: Path, task: dict[str, Any]) -> None:
    session = open_session(tiny_language.experiment(task))
    assert not session.fresh and not session.loading.ignored
    params, _ = session.load_base()
    np.testing.assert_array_equal(params["head.embedding"], load_file(home / "model" / "model.safetensors")["lm_head.weight"])


def test_a_fresh_head_is_refused(home: Path) -> None:
    values = tiny_language.experiment(CHAT)
    values["model"]["head"] = "new"
    with pytest.raises(ConfigError, match=r"model.head: found new; a language model predicts tokens with its base's own head"):
        open_session(values)


# -- what is read -----------------------------------------------------------------------------------------------------------

STAMPED = (
    "{{ strftime_now('%d %B %Y') }}{% for tool in tools or [] %} [{{ tool.name }}]{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}:{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


def test_a_template_gets_its_date_and_the_records_tools(home: Path) -> None:
    """As it does when the model is asked."""
    (home / "model" / "chat_template.jinja").write_text(STAMPED)
    tokenizer = Tokenizer.load(home / "model")
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": '[{"name": "f"}]'}
    task = CausalLM(messages="messages", tools="tools", today=datetime.date(2026, 1, 31))
    assert task.columns == ("messages", "tools")
    text = task.passage(record, task.template(tokenizer)).text
    assert text == "31 January 2026 [f]<|im_start|>user:a<|im_end|><|im_start|>assistant:b<|im_end|>"
    (asked,) = task.prompts([record], tokenizer)
    assert tokenizer.decode(asked) == text.removesuffix("b<|im_end|>")
    (plain,) = task.prompts([task.from_text("a")], tokenizer)
    assert tokenizer.decode(plain) == text.removesuffix("b<|im_end|>").replace(" [f]", "")
    with pytest.raises(DataError, match=r"set the time that it is to write \(task.today\)"):
        task.passage(record, CausalLM(messages="messages").template(tokenizer))


def test_another_end_token_is_other_data(home: Path) -> None:
    """Also where generation_config.json names both, so that generation ends at the same tokens."""
    folder = home / "model"
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    task, ends = CausalLM(prompt="p", completion="c"), []
    for token in ("<|im_end|>", "<|end|>"):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": token}))
        processor = Processor(tokenizer=Tokenizer.load(folder))
        found = task.encode([{"p": "a", "c": " b"}], (), processor, Limits(max_tokens=32, cache=home / "kept", key="x"))  # type: ignore[arg-type]
        ends.append(int(found.examples.row(0)["tokens"][-1]))
    assert ends == [2, 0]
