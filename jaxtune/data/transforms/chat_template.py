"""A checkpoint's own chat template: from a list of messages to the one text that the model was taught to read.

Templates are programs that came with a download, so they run in Jinja's sandbox and see plain JSON values alone. The environment
is the one that template authors write for, transformers' (tests/references/chat holds what that renders), with one difference:
without `now` the clock does not exist, because a template that writes today's date would make other training data tomorrow.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jaxtune.core.errors import DataError, ModelError
from jaxtune.core.printable import printable
from jaxtune.data.special_tokens import SpecialTokens, read_json

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]
FILE = "chat_template.jinja"
LEAVES = (str, int, float, bool, type(None))


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """
    Attributes:
        source: the Jinja text.
        special: names and texts of the special tokens, which templates write by name.
        variables: what else templates ask for by name: {"enable_thinking": False}.
        now: the time that `strftime_now` tells; None: there is no such function, and templates write the date they have in store.
    """

    source: str
    special: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    now: datetime.datetime | None = None

    @classmethod
    def load(
        cls, folder: Path, special: SpecialTokens, *, variables: Mapping[str, Any] | None = None, now: datetime.datetime | None = None
    ) -> ChatTemplate:
        """The template of a model folder: chat_template.jinja, else "chat_template" in tokenizer_config.json (of several, "default").

        Raises:
            ModelError: there is none, or it is not written in Jinja.
        """
        file = folder / FILE
        found: Any = (
            file.read_text(encoding="utf-8") if file.is_file() else read_json(folder / "tokenizer_config.json").get("chat_template")
        )
        if isinstance(found, list):  # [{"name": "default", "template": ...}, ...]
            named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, Mapping)}
            if "default" not in named:
                raise ModelError(f'{folder}: its chat templates are called {", ".join(named)}; expected one called "default"')
            found = named["default"]
        if not isinstance(found, str):
            raise ModelError(
                f"{folder}: no chat template (neither {FILE} nor chat_template in tokenizer_config.json): a base model that was never taught "
                f"to chat? Choose its instruct version, put a {FILE} into the folder, or train on prompt and completion columns"
            )
        template = cls(found, special.texts, dict(variables or {}), now)
        _ = template._compiled
        return template

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the rendered text; kept with the run, so that it is served with the template it was trained with."""
        parts = [self.source, dict(self.special), dict(self.variables), None if self.now is None else self.now.isoformat()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def render(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt` it ends where the assistant is to answer.

        `tools` are JSON schemas of functions. Keys whose value is None count as absent (tables fill missing ones so).

        Raises:
            DataError: the template refuses the conversation; says why.
        """
        from jinja2 import TemplateError

        try:
            return self._compiled.render(
                messages=[{key: value for key, value in message.items() if value is not None} for message in messages],
                tools=_plain(tools) if tools else None, documents=None, add_generation_prompt=prompt, **{**self.special, **self.variables},
            )  # fmt: skip
        except TemplateError as error:
            hint = "; set the time that it is to write (task.today)" if "strftime_now" in str(error) else ""
            raise DataError(f"the chat template refuses it: {printable(error, 200)}{hint}") from error
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:  # e.g. text + None inside the template
            raise DataError(f"the chat template fails on it: {printable(error, 200)}") from error

    @cached_property
    def _compiled(self) -> Template:
        from jinja2 import TemplateSyntaxError
        from jinja2.exceptions import TemplateRuntimeError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> NoReturn:
            raise TemplateRuntimeError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = refuse
        if self.now is not None:
            environment.globals["strftime_now"] = self.now.strftime
        try:
            return environment.from_string(self.source)
        except TemplateSyntaxError as error:
            raise ModelError(
                f"the chat template is no Jinja, line {error.lineno}: {error.message}; fetch the model's files again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}


def read_messages(value: Any) -> list[dict[str, Any]]:
    """A conversation of a record, checked: a list of messages with a role and a content, or JSON text of one (CSV files).

    A message without content is one that calls tools. What else a message holds goes to the template as it is.

    Raises:
        DataError: it is no such thing; says what was found.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError(f"expected a list of messages, found the text {printable(value)!r}") from None
    if not isinstance(value, Sequence) or not value:
        raise DataError("expected a list of messages, found " + ("an empty one" if isinstance(value, Sequence) else _kind(value)))
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise DataError(f'message {number}: expected {{"role": ..., "content": ...}}, found {_kind(message)}')
        message = _plain({key: part for key, part in message.items() if part is not None})
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            said = (
                f"; {', '.join(message)} are another tool's names: rename them to role and content"
                if {"from", "value"} <= set(message)
                else ""
            )
            raise DataError(f'message {number}: expected a "role" (system, user, assistant, tool), found {_kind(role)}{said}')
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise DataError(f'message {number} ({role}): expected a "content" of text, found {_kind(content)}')
        messages.append(message)
    return messages


def read_tools(value: Any) -> list[Any] | None:
    """The functions that a record's conversation may call, a list of JSON schemas or JSON text of one; None where it has none.

    Raises:
        DataError: it is no such thing; says what was found.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value or "null")
        except ValueError:
            raise DataError(f"expected a list of tools, found the text {printable(value)!r}") from None
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"expected a list of tools, found {_kind(value)}")
    return _plain(value)


def as_turns(value: Any, role: str) -> list[dict[str, Any]]:
    """A text as one message of that role; a list of messages as it is, checked.

    Raises:
        DataError: it is neither.
    """
    return [{"role": role, "content": value}] if isinstance(value, str) else read_messages(value)


def _kind(value: Any) -> str:
    return "none" if value is None else f"a value of type {type(value).__name__}"


def _plain(value: Any) -> Any:
    """A copy of plain JSON values: an object with methods of its own has no business in a template."""
    if type(value) in LEAVES:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    raise DataError(f"found {_kind(value)} inside; expected text, numbers, lists and objects")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML, which a model must not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation() -> Any:
    """A Jinja extension: {% generation %} ... {% endgeneration %} marks what the assistant said; we find that by ourselves, so it is passed through."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  the name and type that Jinja asks for

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation
