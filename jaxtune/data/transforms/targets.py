"""From passages to token rows with a weight for every token as a target; what is left to learn is counted and checked.

Spans are characters, tokens are what the tokenizer makes of them, and a tokenizer may join the end of a prompt and the beginning of an
answer into one token. A span's first token is the one behind the tokens of the text before it, as generation will see them; where
these are not the beginning of the whole row's tokens, the tokenizer's own offsets decide, and the row is counted.

Nothing here is masked by a token's number. Tools that do so lose the end-of-sequence token wherever it doubles as padding, and models
trained with them never stop; padding is what `segment_ids` say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms.passages import Passage
from jaxtune.data.transforms.tokenize import NAMED, TEXTS_AT_ONCE, OverLength, Tokenizer


def encode(
    tokenizer: Tokenizer,
    passages: Sequence[Passage],
    special: SpecialTokens,
    *,
    max_tokens: int,
    over_length: OverLength = "cut",
    append_eos: bool = True,
    names: Sequence[str] | None = None,
) -> Examples:
    """One row per passage, in order: columns `tokens` and `token_weight` (weight as a target, predicted from the tokens before it).

    Documents get the tokenizer's special tokens once, whatever their text brings along, and with `append_eos` the end-of-sequence
    token. In a conversation's turn what follows its last stop token (a line break, in many templates) is not learned: generation has
    ended there. `cut` keeps the beginning. Facts per row: `full_length` (before cutting), `kept` (False: dropped, or nothing of it is
    learned) and `blurred` (a span's first token is not the one that follows its prompt's tokens).

    Raises:
        ConfigError: `append_eos` without an end-of-sequence token.
        DataError: rows that are too long, where that is an error; rows whose tokens have no place in the text; names rows.
    """
    if append_eos and special.end is None and any(passage.document for passage in passages):
        raise ConfigError(f"{tokenizer.folder}: the tokenizer has no end-of-sequence token to put behind texts; turn that off")
    lead, trail = _around(tokenizer)
    parts = [passages[start : start + TEXTS_AT_ONCE] for start in range(0, len(passages), TEXTS_AT_ONCE)]
    found = [row for part in parts for row in _weighted(tokenizer, part)]
    lost = [number for number, row in enumerate(found) if row is None]
    if lost:
        raise DataError(
            f"the tokens of {len(lost)} rows have no clear place in their text, so what to learn is unclear: {_rows(lost, names)}"
        )
    end = special.end if append_eos else None
    rows = [
        _enclosed(row, lead, trail, end) if passage.document else _ended(row, special.stops)
        for row, passage in zip(found, passages, strict=True)
        if row is not None
    ]
    full = np.array([len(row.tokens) for row in rows], np.int32)
    long = np.flatnonzero(full > max_tokens)
    if over_length == "error" and len(long):
        raise DataError(
            f"{len(long)} of {len(full)} rows have more than {max_tokens} tokens: {_rows(long, names)}; "
            "raise max_tokens, or choose over_length: cut or drop"
        )
    kept = full <= max_tokens if over_length == "drop" else np.ones(len(full), bool)
    limits = np.where(kept, max_tokens, 0)
    tokens = [row.tokens[:limit] for row, limit in zip(rows, limits, strict=True)]
    weights = [row.weight[:limit] for row, limit in zip(rows, limits, strict=True)]
    kept &= np.array([weight.any() for weight in weights], bool)
    facts = {"full_length": full, "kept": kept, "blurred": np.array([row.blurred for row in rows], bool)}
    return Examples({"tokens": Ragged.of(tokens), "token_weight": Ragged.of(weights, np.float32)}, facts=facts)


@dataclass(frozen=True)
class TargetReport:
    """What of the rows is learned, and what was lost on the way."""

    rows: int
    over: int  # rows longer than max_tokens
    dropped: int  # of these, by over_length: drop
    untrained: int  # rows left out because nothing of them is a target
    blurred: int  # rows whose prompt ends in other tokens when the answer follows
    tokens: int  # in the rows that are left
    trained: int  # of these, tokens with a weight
    stops: int  # of these, tokens at which generation ends

    @classmethod
    def of(cls, examples: Examples, max_tokens: int, over_length: OverLength, stops: Sequence[int]) -> TargetReport:
        """Of all rows of `encode`."""
        full, kept, blurred = (np.asarray(examples.facts[name]) for name in ("full_length", "kept", "blurred"))
        tokens, weights = _flat(examples, "tokens"), _flat(examples, "token_weight")
        assert examples.lengths is not None
        left, over = np.repeat(kept, examples.lengths), full > max_tokens
        dropped = over if over_length == "drop" else np.zeros_like(over)
        learned = tokens[weights > 0]
        return cls(
            rows=len(full),
            over=int(over.sum()),
            dropped=int(dropped.sum()),
            untrained=int((~kept & ~dropped).sum()),
            blurred=int(blurred.sum()),
            tokens=int(left.sum()),
            trained=len(learned),
            stops=int(np.isin(learned, stops).sum()),
        )

    @property
    def trained_share(self) -> float:
        return self.trained / max(self.tokens, 1)

    def check(self, stop_texts: Sequence[str], must_stop: bool) -> None:
        """`must_stop`: the model is to learn where an answer ends (conversations, and documents with an end).

        Raises:
            DataError: nothing is learned, or never an end.
        """
        if not self.trained:
            why = [f"{self.dropped} are longer than max_tokens and dropped"] if self.dropped else []
            if self.untrained:
                cut = f" within max_tokens ({self.over} are longer)" if self.over > self.dropped else ""
                why.append(f"{self.untrained} have no target{cut}")
            raise DataError(
                f"no token of all {self.rows} rows is learned: {', '.join(why)}; expected answers to learn: "
                + (
                    "raise max_tokens"
                    if self.over
                    else 'messages need turns with the role "assistant" (and no "weight": 0), completions need text'
                )
            )
        if must_stop and not self.stops:
            what = f"none of {', '.join(stop_texts)}" if stop_texts else "no token at all, because the checkpoint names none"
            cut = f", {self.over - self.dropped} of {self.rows} rows are cut before their end" if self.over > self.dropped else ""
            raise DataError(
                f"the end of an answer is never learned{cut}: generation would stop at {what}, and no trained token is one; a model trained "
                "so never stops. Raise max_tokens, or name the token that ends the template's turns in generation_config.json (eos_token_id)"
            )

    def lines(self) -> list[str]:
        """For people."""
        out = [f"trained tokens: {self.trained:,} of {self.tokens:,} ({self.trained_share:.1%})"]
        if self.over > self.dropped:
            out.append(
                f"{self.over} of {self.rows} rows are cut: what they say at their end is not learned, nor where it ends; raise max_tokens, or drop them"
            )
        if self.untrained:
            out.append(f"left out: {self.untrained} of {self.rows} rows, nothing in them is a target")
        if self.blurred:
            out.append(
                f"{self.blurred} of {self.rows} prompts end in other tokens once the answer follows, because a token spans both: "
                "end prompts without a space and begin answers with one (or a line break), or use as_chat"
            )
        return out


def last_answer(tokens: np.ndarray, token_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row cut in two where its last answer begins: (what generation starts from, the answer as it was learned).

    Both i32[..], together the row without what follows its last target.
    """
    tokens, learned = np.asarray(tokens, np.int32), np.flatnonzero(np.asarray(token_weight) > 0)
    if not len(learned):
        return tokens, tokens[:0]
    gaps = np.flatnonzero(np.diff(learned) > 1)
    start = learned[gaps[-1] + 1] if len(gaps) else learned[0]
    return tokens[:start], tokens[start : learned[-1] + 1]


class _Row(NamedTuple):
    tokens: np.ndarray  # i32[T]
    weight: np.ndarray  # f32[T]
    blurred: bool


def _weighted(tokenizer: Tokenizer, passages: Sequence[Passage]) -> list[_Row | None]:
    """Per passage its tokens, without special ones around; None where a span has no clear place among them."""
    backend = tokenizer.backend
    encodings = backend.encode_batch([passage.text for passage in passages], add_special_tokens=False)
    whole = [encoding.ids for encoding in encodings]
    edges = [
        (number, edge)
        for number, passage in enumerate(passages)
        for edge in sorted({edge for span in passage.trained for edge in (span.start, span.end)} - {0, len(passage.text)})
    ]
    before = backend.encode_batch_fast([passages[number].text[:edge] for number, edge in edges], add_special_tokens=False)
    places: list[dict[int, int | None]] = [{0: 0, len(p.text): len(ids)} for p, ids in zip(passages, whole, strict=True)]
    blurred = [False] * len(passages)
    for (number, edge), prefix in zip(edges, before, strict=True):
        start = prefix.ids
        if whole[number][: len(start)] == start:
            places[number][edge] = len(start)
        else:
            places[number][edge] = _by_offsets(encodings[number].offsets, edge)
            blurred[number] |= any(span.start == edge for span in passages[number].trained)
    out: list[_Row | None] = []
    for passage, ids, place, blur in zip(passages, whole, places, blurred, strict=True):
        weight = np.zeros(len(ids), np.float32)
        for span in passage.trained:
            weight[place[span.start] : place[span.end]] = span.weight
        lost = any(found is None for found in place.values())
        out.append(None if lost else _Row(np.array(ids, np.int32), weight, blur))
    return out


def _by_offsets(offsets: Sequence[tuple[int, int]], edge: int) -> int | None:
    """The first token with a character behind the edge; None where the offsets do not run through the text in order."""
    ends = [end for _, end in offsets]
    if any(one > next_one for one, next_one in pairwise(ends)):
        return None
    return next((place for place, end in enumerate(ends) if end > edge), None)


def begin(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a document that goes on behind `text`: with the special tokens before it, without those behind."""
    lead, _ = _around(tokenizer)
    ids = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return ids if ids[: len(lead)] == lead else [*lead, *ids]


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    encoding = tokenizer.backend.encode("a")
    inside = [place for place, text in enumerate(encoding.sequence_ids) if text is not None]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


def _enclosed(row: _Row, lead: list[int], trail: list[int], end: int | None) -> _Row:
    """A document with the special tokens around it, once; those behind are learned as its last token is."""
    ids, weight = row.tokens, row.weight
    before = [] if lead and ids[: len(lead)].tolist() == lead else lead
    behind = [] if trail and ids[-len(trail) :].tolist() == trail else list(trail)
    if end is not None and (behind or ids.tolist())[-1:] != [end]:
        behind.append(end)
    last = weight[-1] if len(weight) else np.float32(0)
    ids = np.concatenate([np.array(before, np.int32), ids, np.array(behind, np.int32)])
    weight = np.concatenate([np.zeros(len(before), np.float32), weight, np.full(len(behind), last, np.float32)])
    return _Row(ids, _without_first(weight), row.blurred)


def _ended(row: _Row, stops: Sequence[int]) -> _Row:
    """A conversation without the weights behind the last stop token of each trained stretch."""
    weight = row.weight.copy()
    edges = np.flatnonzero(np.diff(weight > 0, prepend=False, append=False))
    for start, end in edges.reshape(-1, 2):
        found = np.flatnonzero(np.isin(row.tokens[start:end], stops))
        if len(found):
            weight[start + found[-1] + 1 : end] = 0
    return row._replace(weight=_without_first(weight))


def _without_first(weight: np.ndarray) -> np.ndarray:
    """Nothing stands before the first token to predict it from."""
    weight[:1] = 0
    return weight


def _flat(examples: Examples, name: str) -> np.ndarray:
    column = examples.columns[name]
    assert isinstance(column, Ragged) and len(column) == len(examples)
    return np.asarray(column.flat)


def _rows(rows: Sequence[int] | np.ndarray, names: Sequence[str] | None) -> str:
    said = ", ".join(names[row] if names else f"row {row}" for row in list(rows)[:NAMED])
    return said + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
