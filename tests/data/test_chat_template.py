from __future__ import annotations

import json
import pickle
from datetime import datetime

import pytest
from chats import FOLDER, chat, recorded, special, template, tokenizer

from jaxtune.core.errors import DataError, ModelError
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms.chat_template import ChatTemplate, read_messages, read_tools
from jaxtune.data.transforms.tokenize import Tokenizer


@pytest.mark.parametrize("case", recorded()["cases"], ids=lambda case: case["template"])
def test_text_and_tokens_equal_those_of_transformers(case):
    now = datetime.fromisoformat(recorded()["now"]) if case.get("now") else None
    made = template(case["template"], now, **case.get("variables", {}))
    render = lambda: made.render(read_messages(case["messages"]), tools=case.get("tools"), prompt=case.get("prompt", False))  # noqa: E731
    if "refused" in case:
        with pytest.raises(DataError, match=f"the chat template refuses it: {case['refused']}"):
            render()
    else:
        assert render() == case["text"]
        assert tokenizer().backend.encode(case["text"], add_special_tokens=False).ids == case["tokens"]


def test_the_folder_s_own_template_is_found_wherever_it_stands(tmp_path):
    source = recorded()["templates"]["marks"]
    found = ChatTemplate.load(FOLDER, special())
    assert found.source == source and found.render(chat("a"), prompt=True).endswith("assistant\n")
    config = tmp_path / "tokenizer_config.json"
    for stored in (source, [{"name": "tool_use", "template": "x"}, {"name": "default", "template": source}]):
        config.write_text(json.dumps({"chat_template": stored}))
        assert ChatTemplate.load(tmp_path, special()).source == source
    (tmp_path / "chat_template.jinja").write_text("the file decides")
    assert ChatTemplate.load(tmp_path, special()).source == "the file decides"


@pytest.mark.parametrize(
    ("stored", "said"),
    [({}, "no chat template .* prompt and completion"), ({"chat_template": "{% for %}"}, "no Jinja, line 1"),
     ({"chat_template": [{"name": "rag", "template": ""}]}, 'called rag; expected one called "default"')],
)  # fmt: skip
def test_a_folder_without_a_usable_template_is_refused(tmp_path, stored, said):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelError, match=said):
        ChatTemplate.load(tmp_path, special())


def test_the_clock_does_not_exist_unless_it_is_set():
    with pytest.raises(DataError, match=r"strftime_now.*set the time"):
        ChatTemplate("{{ strftime_now('%Y') }}").render(chat("a"))
    assert ChatTemplate("{{ strftime_now('%Y') }}", now=datetime(1999, 1, 1)).render(chat("a")) == "1999"


def test_tools_are_a_list_or_json_text_of_one():
    tools = [{"name": "f", "parameters": {"x": {"type": "integer"}}}]
    assert read_tools(tools) == read_tools(json.dumps(tools)) == tools
    assert read_tools(None) is read_tools("") is None
    for wrong, said in (("f(x)", r"the text 'f\(x\)'"), ({"name": "f"}, "a value of type dict"), ("3", "a value of type int")):
        with pytest.raises(DataError, match=f"expected a list of tools, found {said}"):
            read_tools(wrong)


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(role='x') }}", "{{ cycler.__init__.__globals__ }}",
     "{% include '/etc/passwd' %}", "{{ range(10 ** 9) | list }}"],
)  # fmt: skip
def test_templates_can_do_nothing_but_write(attack):
    with pytest.raises(DataError, match="the chat template"):
        ChatTemplate(attack).render(chat("a"))


def test_a_template_that_fails_inside_says_so_as_data_not_as_a_crash():
    with pytest.raises(DataError, match=r"the chat template fails on it: .*NoneType"):
        ChatTemplate("{{ 'a' + tools }}").render(chat("a"))


def test_the_fingerprint_is_of_all_that_decides_the_text():
    dated = template("dated")
    made = [template("marks"), dated, template("dated", datetime(2026, 1, 1)), template("dated", x=1), ChatTemplate(dated.source)]
    assert len({one.fingerprint for one in made}) == len(made)
    assert template("dated").fingerprint == template("dated").fingerprint
    made[0].render(chat("a"))
    assert pickle.loads(pickle.dumps(made[0])).render(chat("a")) == made[0].render(chat("a"))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "found none"), ([], "an empty one"), (3, "type int"), ("hello", "the text 'hello'"), (["hi"], "message 0: .*type str"),
        ([{"from": "human", "value": "hi"}], 'message 0: expected a "role".*rename'), ([{"role": "user"}], r'message 0 \(user\): expected a "content"'),
        ([{"role": "user", "content": "a"}, {"role": 1, "content": "a"}], 'message 1: expected a "role"'),
        ([{"role": "user", "content": [{"type": "image"}]}], "type list"), ([{"role": "assistant", "content": None}], "found none"),
        ([{"role": "user", "content": "a", "extra": object()}], "type object"),
    ],
)  # fmt: skip
def test_malformed_messages_are_named(messages, said):
    with pytest.raises(DataError, match=said):
        read_messages(messages)


def test_messages_come_as_lists_or_as_json_and_without_empty_keys():
    messages = chat("a", "b")
    assert read_messages(json.dumps(messages)) == read_messages([{**one, "name": None} for one in messages]) == messages
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert read_messages([call]) == [{name: value for name, value in call.items() if value is not None}]


def test_special_tokens_of_a_folder(tmp_path):
    found = special()
    assert (found.begin, found.end, found.stops) == (3, 2, (2,)) and found.texts["pad_token"] == "<|im_end|>"
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "tokenizer.json").read_bytes())
    (tmp_path / "config.json").write_text('{"bos_token_id": null, "eos_token_id": [0, 2]}')
    bare = SpecialTokens.load(Tokenizer.load(tmp_path))
    assert (bare.begin, bare.end, bare.stops, bare.texts) == (None, None, (0, 2), {})
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 0}')  # as GPT-2's, whose other files name no tokens
    assert SpecialTokens.load(Tokenizer.load(tmp_path)).texts == {"bos_token": "<|end|>", "eos_token": "<|end|>"}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')  # generation's list decides where it ends
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    assert SpecialTokens.load(Tokenizer.load(tmp_path)).stops == (0, 2, 3)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ModelError, match="eos_token '</s>' is no token"):
        SpecialTokens.load(Tokenizer.load(tmp_path))
