"""What a language model is to read and what of it to learn, in characters: plain texts, prompts with completions, conversations.

All three become a `Passage`, one text with spans that are trained, so tokens, cutting and checks (`targets.py`) know one thing only.
What an assistant's turn is, is found by asking the template twice, for the conversation before the turn with the generation prompt and
for the conversation with the turn: the difference is what the model would have to write. Marks inside templates
({% generation %}) would say the same, but the templates that checkpoints come with have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.transforms.chat_template import ChatTemplate, read_messages

Turns = Literal["all", "last"]
NAMED = 5  # rows told in full in an error
SHOWN = 40  # characters of a text in an error


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end`, learned with `weight`."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True)
class Passage:
    """
    Attributes:
        text: all that the model reads.
        trained: what of it is learned, in order, not overlapping.
        document: a text that stands for itself, so the tokenizer's special tokens go around it; a conversation has its own.
    """

    text: str
    trained: tuple[Span, ...]
    document: bool


def of_text(text: Any) -> Passage:
    """Plain text: everything is learned.

    Raises:
        DataError: it is no text.
    """
    text = _text(text, "text")
    return Passage(text, (Span(0, len(text)),), document=True)


def of_completion(prompt: Any, completion: Any) -> Passage:
    """A prompt and how it goes on, which is learned.

    Raises:
        DataError: one of them is no text, or the completion is empty.
    """
    prompt, completion = _text(prompt, "prompt"), _text(completion, "completion")
    if not completion:
        raise DataError("the completion is empty; expected text")
    return Passage(prompt + completion, (Span(len(prompt), len(prompt) + len(completion)),), document=True)


def of_chat(template: ChatTemplate, messages: Any, *, tools: Any = None, turns: Turns = "all") -> Passage:
    """A conversation up to the assistant's last turn; its turns are learned, or its last one alone.

    A message's own "weight" (0: not learned), as other tools' files have it, counts.

    Raises:
        DataError: the messages are malformed, the template refuses them, or it writes a turn in another way than it asks for it, or
            an earlier turn in another way than when it was the last: what would be learned is not what the model will be asked.
    """
    messages = read_messages(messages)
    spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not spoken:
        return Passage(template.render(messages, tools=tools), (), document=False)
    last = spoken[-1]
    text = template.render(messages[: last + 1], tools=tools)
    spans = []
    for number in spoken if turns == "all" else spoken[-1:]:
        weight = _weight(messages[number], number)
        if weight == 0:
            continue
        before = template.render(messages[:number], tools=tools, prompt=True)
        after = text if number == last else template.render(messages[: number + 1], tools=tools)
        other = next((part for part in (before, after) if not text.startswith(part)), None)
        if other is not None and number != last:
            raise DataError(
                f"message {number}: once more messages follow, the template writes it in another way ({_differs(text, other)} instead of "
                f"{_differs(other, text)}), so the model would learn what it is never asked; learn the last turn alone (turns: last)"
            )
        if other is not None:
            raise DataError(
                f"message {number}: the template asks for the answer with {before[-SHOWN:]!r}, but writes the answered conversation as "
                f"{_differs(text, before)}; give the template the variables that make both alike, or put what is missing into the message"
            )
        spans.append(Span(len(before), len(after), weight))
    return Passage(text, tuple(spans), document=False)


def everything(passage: Passage) -> Passage:
    """The same text, all of it learned."""
    return replace(passage, trained=(Span(0, len(passage.text)),))


def passages(make: Callable[[int], Passage], rows: int, names: Sequence[str] | None = None) -> list[Passage]:
    """`make(row)` of all rows. `names` are what errors call the rows (default: "row 7").

    Raises:
        DataError: of the rows that failed, how many, and the first ones with the reason.
    """
    made, failed = [], []
    for row in range(rows):
        try:
            made.append(make(row))
        except DataError as error:
            failed.append(f"{names[row] if names else f'row {row}'}: {error}")
    if failed:
        more = f"\n  and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise DataError(f"{len(failed)} of {rows} rows cannot be trained on:\n  " + "\n  ".join(failed[:NAMED]) + more)
    return made


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            raise DataError(f"the {what} holds half of a surrogate pair; expected proper text") from None
    raise DataError(f"the {what} is {'empty' if value is None else f'a value of type {type(value).__name__}'}; expected text")


def _weight(message: dict[str, Any], number: int) -> float:
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise DataError(f'message {number}: "weight" is {printable(weight)!r}; expected a number from 0')
    return float(weight)


def _differs(text: str, other: str) -> str:
    """What stands where `text` stops being like `other`."""
    at = next((place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text[at : at + SHOWN])
