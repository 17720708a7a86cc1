"""Which column of unknown data is the text, which the label, and what the label asks for.

Names are believed first, values second: a column called "label" is the label even where another one would do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError
from jaxtune.core.printable import printable

Columns = Mapping[str, Sequence[Any]]
Problem = Literal["single_label", "multi_label", "regression"]

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
}
_TEXT_NAMES = (
    "text", "sentence", "review", "content", "body", "document", "article", "comment", "message", "question", "tweet", "post", "abstract",
    "description", "utterance",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "target", "class", "category", "topic", "sentiment", "intent", "genre", "tag", "tags", "topics", "emotion", "rating",
    "stars", "score", "y", "answer",
)  # fmt: skip
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"),
    ("question", "sentence"), ("question", "passage"), ("query", "passage"), ("query", "document"),
)  # fmt: skip
_SPLIT_NAMES = ("split", "set", "subset", "partition", "fold")
_GROUP_NAMES = ("author", "user", "user_id", "patient", "patient_id", "speaker", "group", "group_id", "document_id", "customer_id")
_NEVER_LABELS = ("id", "idx", "index", "uuid", "url", "path", "split", *_GROUP_NAMES)


def words(value: Any) -> int:
    return len(value.split()) if isinstance(value, str) else 0


def is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _given(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None and value != ""]


def find_text(columns: Columns, wanted: str | None) -> tuple[str, str | None]:
    lower = {name.lower(): name for name in columns}
    if wanted is not None:
        _known(wanted, columns, "--text")
        return wanted, None
    for first, second in _PAIRS:
        if first in lower and second in lower and all(_mean_words(columns[lower[name]]) >= 1 for name in (first, second)):
            return lower[first], lower[second]
    scores = {}
    for name, values in columns.items():
        given = _given(values)
        if not given or not all(isinstance(value, str) for value in given) or all(map(is_number, given)) or name.lower() == "path":
            continue
        repeated = 1 - len(set(given)) / len(given)
        scores[name] = (_mean_words(given) + 1) * (4 if name.lower() in _TEXT_NAMES else 1) * (0.1 if repeated > 0.8 else 1)
    if not scores:
        raise ConfigError(f"--data: no column holds text (columns: {', '.join(columns)}); expected sentences in one of them")
    return max(scores, key=lambda name: scores[name]), None


def _mean_words(values: Sequence[Any]) -> float:
    given = _given(values)
    return sum(map(words, given)) / len(given) if given else 0.0


def find_label(columns: Columns, taken: set[str | None], wanted: str | None) -> str:
    if wanted is not None:
        _known(wanted, columns, "--label")
        return wanted
    scores = {}
    for name, values in columns.items():
        given = _given(values)
        if name in taken or not given or name.lower() in _NEVER_LABELS:
            continue
        keys = [str(value) for value in given]
        distinct = len(set(keys))
        listed = isinstance(given[0], list | tuple | np.ndarray)
        number = all(map(is_number, given)) and any(float(value) != int(float(value)) for value in given)
        repeats = distinct <= max(2, len(keys) / 2)
        if distinct < 2 or not (listed or number or repeats):
            continue
        rank = _LABEL_NAMES.index(name.lower()) if name.lower() in _LABEL_NAMES else len(_LABEL_NAMES)
        scores[name] = (rank, name.lower() in _SPLIT_NAMES, distinct > 100, distinct)
    if not scores:
        others = [name for name in columns if name not in taken]
        shown = "; ".join(f'{name}: "{printable(next(iter(_given(columns[name])), ""), 30)}"' for name in others) or "only the text"
        raise ConfigError(
            f"--data: no column looks like a label: values repeat or are numbers (found {shown}); name it with --label, or say --task causal_lm for a language model"
        )
    return min(scores, key=lambda name: scores[name])


def _known(name: str, columns: Mapping[str, Any], option: str) -> None:
    if name not in columns:
        raise ConfigError(f'{option}: no column "{name}"{nearest(name, columns)} (columns: {", ".join(columns)})')


def find_problem(values: Sequence[Any], name: str) -> Problem:
    """Whether a label column asks for one class, several, or a number."""
    given = _given(values)
    if any(isinstance(value, list | tuple | np.ndarray) for value in given):
        return "multi_label"
    if all(map(is_number, given)):
        numbers = [float(value) for value in given]
        whole = all(number == int(number) for number in numbers)
        return "regression" if len(set(numbers)) > (30 if whole else 10) else "single_label"
    texts = [str(value) for value in given]
    for mark in ("|", ";", ","):
        several = [text for text in texts if mark in text]
        parts = {part.strip() for text in texts for part in text.split(mark)}
        plural = mark != "," or name.lower().endswith("s")
        if plural and len(several) >= 0.05 * len(texts) and len(parts) < len(set(texts)) and len(parts) <= max(200, len(texts) // 10):
            return "multi_label"
    return "single_label"


def classes(values: Sequence[Any], problem: Problem) -> dict[str, int]:
    """How often each class occurs, the most frequent first."""
    if problem == "regression":
        return {}
    if problem == "single_label":
        return dict(Counter(str(value) for value in _given(values)).most_common())
    from jaxtune.tasks.labelled import split_labels

    return dict(Counter(name for value in _given(values) for name in split_labels(value)).most_common())


def find_split(columns: Columns, taken: set[str | None]) -> tuple[str | None, dict[str, str] | None]:
    """A column that names train, validation and test; one without validation rows cannot choose a best checkpoint."""
    for name, values in columns.items():
        named = sorted({str(value) for value in values})
        if name in taken or name.lower() not in _SPLIT_NAMES or not all(word.lower() in SPLIT_WORDS for word in named):
            continue
        meaning = {word: SPLIT_WORDS[word.lower()] for word in named}
        if {"train", "validation"} <= set(meaning.values()):
            return name, meaning
    return None, None


def find_group(columns: Columns, taken: set[str | None]) -> str | None:
    for name, values in columns.items():
        given = [str(value) for value in _given(values)]
        if name not in taken and name.lower() in _GROUP_NAMES and given and len(set(given)) < 0.9 * len(given):
            return name
    return None
