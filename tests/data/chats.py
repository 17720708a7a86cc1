"""The recorded tokenizer to chat with, and its templates."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms.chat_template import ChatTemplate
from jaxtune.data.transforms.tokenize import Tokenizer

FOLDER = Path(__file__).parents[1] / "references" / "chat"


@cache
def recorded() -> dict[str, Any]:
    return json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@cache
def special() -> SpecialTokens:
    return SpecialTokens.load(tokenizer())


def template(name: str = "marks", now: datetime | None = None, **variables: Any) -> ChatTemplate:
    return ChatTemplate(recorded()["templates"][name], special().texts, variables, now)


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Questions and answers in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]
