"""What a language model can learn from unknown data: conversations, prompts with completions, pairs of answers, or plain text.

Names of columns alone decide nothing: a column of answers that repeat is a label, however it is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtune.cli.columns import Columns, find_text, is_number, words
from jaxtune.core.errors import ConfigError

LANGUAGE_TASKS = ("causal_lm", "preference")
WORDS_OF_A_TURN = 4  # what a template writes around a message
_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
_ANSWERED = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"), ("question", "answer"),
    ("query", "response"), ("input", "output"), ("article", "summary"), ("document", "summary"), ("text", "summary"), ("article", "headline"),
)  # fmt: skip
_PROMPTS = ("prompt", "question", "instruction", "query", "input")


@dataclass(frozen=True)
class Form:
    """
    Attributes:
        columns: setting of the task -> column of the data.
        chat: whether a chat template writes the text.
        more: a column that goes into the prompt behind its own, where it holds something.
        answers: as many words as 98 % of the answers have at the most; 0 where nothing is answered.
    """

    task: Literal["causal_lm", "preference"]
    columns: Mapping[str, str]
    lengths: Sequence[int] = field(repr=False)  # words of each row
    chat: bool = True
    more: str | None = None
    answers: int = 0


def find_form(columns: Columns, task: str | None, text: str | None) -> Form | None:
    """The form of data that a language model learns from; None where they rather hold labels.

    Args:
        task: what the user wants, where that is said.
        text: the column that is named for plain text.

    Raises:
        ConfigError: a language model is wanted, but nothing here is for it, or it stands there in a form that is not read.
    """
    if task == "preference":
        if (form := _pairs(columns)) is None:
            raise ConfigError(
                f"--task: preference needs columns prompt, chosen and rejected, each with texts (columns: {', '.join(columns)}); rename them"
            )
        return form
    if task not in (None, "causal_lm"):
        return None
    form = None if text is not None else _chat(columns) or _pairs(columns, task) or _answered(columns, task)
    if form is None and task == "causal_lm":
        name, _ = find_text(columns, text)
        return Form("causal_lm", {"text": name}, [words(value) for value in columns[name]], chat=False)
    return form


def _chat(columns: Columns) -> Form | None:
    parts = {"prompt", "completion", "chosen", "rejected"}  # hold parts of a conversation
    for name in sorted((name for name in columns if name.lower() not in parts), key=lambda name: name.lower() not in _CHATS):
        talks = [_talk(value) for value in columns[name] if value is not None and value != ""]
        if not talks or not all(talk is not None for talk in talks):
            continue
        if any("from" in message and "role" not in message for talk in talks for message in talk or ()):
            raise ConfigError(
                f'--data: "{name}" holds messages as {{from, value}}; expected {{role, content}} with the roles system, user and assistant: '
                "rename them (human is user, gpt is assistant)"
            )
        said = [[(message.get("role"), words(message.get("content"))) for message in talk or ()] for talk in talks]
        lengths = [sum(count + WORDS_OF_A_TURN for _, count in talk) for talk in said]
        answers = [count for talk in said for role, count in talk if role == "assistant"]
        return Form("causal_lm", {"messages": name}, lengths, answers=_most(answers))
    return None


def _talk(value: Any) -> list[Mapping[str, Any]] | None:
    """A conversation, or JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not len(value):
        return None
    if all(isinstance(one, Mapping) and ({"role", "content"} <= one.keys() or {"from", "value"} <= one.keys()) for one in value):
        return list(value)
    return None


def _pairs(columns: Columns, task: str | None = "preference") -> Form | None:
    lower = {name.lower(): name for name in columns}
    prompt = next((lower[name] for name in _PROMPTS if name in lower), None)
    if task == "causal_lm" or prompt is None or not {"chosen", "rejected"} <= lower.keys():
        return None
    names = {"prompt": prompt, "chosen": lower["chosen"], "rejected": lower["rejected"]}
    if not all(_texts(columns[name]) for name in names.values()):
        return None
    rows = zip(*(columns[name] for name in names.values()), strict=True)
    lengths = [_words(prompt) + max(_words(chosen), _words(rejected)) for prompt, chosen, rejected in rows]
    return Form("preference", names, lengths)


def _answered(columns: Columns, task: str | None) -> Form | None:
    lower = {name.lower(): name for name in columns}
    if task is None and {"label", "labels"} & lower.keys():
        return None
    for prompt, completion in _ANSWERED:
        if prompt not in lower or completion not in lower:
            continue
        asked, given = columns[lower[prompt]], columns[lower[completion]]
        if not _texts(asked) or not _texts(given) or _repeat(given):
            continue
        behind = lower.get("input", lower.get("context")) if prompt == "instruction" else None
        filled = behind is not None and any(isinstance(value, str) and value.strip() for value in columns[behind])
        lengths = [_words(a) + _words(b) for a, b in zip(asked, given, strict=True)]
        if behind is not None and filled:
            lengths = [length + words(value) for length, value in zip(lengths, columns[behind], strict=True)]
        names = {"prompt": lower[prompt], "completion": lower[completion]}
        return Form("causal_lm", names, lengths, more=behind if filled else None, answers=_most([_words(value) for value in given]))
    return None


def _texts(values: Sequence[Any]) -> bool:
    """Whether all are texts, or lists of messages."""
    given = [value for value in values if value is not None and value != ""]
    return bool(given) and all(isinstance(value, str) or _talk(value) is not None for value in given) and not all(map(is_number, given))


def _repeat(values: Sequence[Any]) -> bool:
    """Whether they are few, as the names of classes are."""
    return len(set(map(str, values))) <= max(2, len(values) / 2)


def _words(value: Any) -> int:
    """Of a text or of messages, with what a template writes around them."""
    talk = [value] if isinstance(value, str) else [message.get("content") for message in _talk(value) or ()]
    return sum(words(said) + WORDS_OF_A_TURN for said in talk)


def _most(counts: Sequence[int]) -> int:
    return sorted(counts)[int(0.98 * (len(counts) - 1))] if counts else 0
