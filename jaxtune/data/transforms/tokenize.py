"""Text to token numbers, with one policy for texts that are too long, and a report of the lengths.

The tokenizer of a checkpoint often carries somebody else's cutting and padding (sentence-transformers: 128 tokens); both are
switched off here, so only `max_tokens` and `over_length` of the experiment decide. Where tokenizer.json says all, it is read by
the `tokenizers` library at once (0.1 s); transformers (1 to 2 s to import) is asked only where other files say more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxtune.core.errors import ConfigError, DataError, ModelError, UnsafeInputError
from jaxtune.data.examples import Ragged
from jaxtune.data.special_tokens import read_json

if TYPE_CHECKING:
    import tokenizers

OverLength = Literal["cut", "drop", "error"]
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
TEXTS_AT_ONCE = 1024
NAMED = 10  # rows named in an error


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Token rows, one per text in the same order; a dropped text has an empty row, so row numbers stay those of the texts."""

    tokens: Ragged
    token_types: Ragged | None  # only for pairs, where the tokenizer tells the two texts apart
    full_lengths: np.ndarray  # int32[rows], before cutting, special tokens included
    kept: np.ndarray  # bool[rows]
    cut: int  # texts that lost their end


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of one model folder. Picklable."""

    folder: Path
    backend: tokenizers.Tokenizer  # without cutting and padding
    max_tokens: int | None  # what the folder says the model takes; None when it does not say

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Raises:
        ModelError: no tokenizer in the folder, files that cannot be read, or a kind without a fast implementation.
        UnsafeInputError: the tokenizer is code that lies in the folder.
        """
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json")
        backend = _by_file(folder, config) or _by_transformers(folder, config)
        backend.no_truncation()
        backend.no_padding()
        longest = config.get("model_max_length")
        return cls(folder, backend, int(longest) if isinstance(longest, int | float) and longest < 1_000_000 else None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the token numbers."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @property
    def files(self) -> tuple[Path, ...]:
        """The tokenizer's files, to go along with an exported model."""
        return tuple(self.folder / name for name in FILES if (self.folder / name).is_file())

    @property
    def vocabulary(self) -> int:
        """Highest token number + 1, added tokens included: the rows an embedding table must have."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(number for number, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def has_token_types(self) -> bool:
        """Whether the two texts of a pair get different token types."""
        return any(self.backend.encode("a", "a").type_ids)

    def special_tokens(self, pairs: bool) -> int:
        """How many special tokens a text, or a pair, gets."""
        return self.backend.num_special_tokens_to_add(pairs)

    def special_mask(self, tokens: np.ndarray) -> np.ndarray:
        """bool, where the token is a special one."""
        return np.isin(tokens, self.special_ids)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text that the tokens stand for, special tokens included: what the model sees."""
        return self.backend.decode([int(token) for token in tokens], skip_special_tokens=False)

    def pieces(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """Each token as it stands in the vocabulary."""
        return [self.backend.id_to_token(int(token)) or "?" for token in tokens]

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_tokens: int,
        over_length: OverLength = "cut",
        names: Sequence[str] | None = None,
    ) -> EncodedTexts:
        """Token numbers of all texts, or of texts and their second texts, special tokens included.

        `cut` takes away the end of a text; of a pair, the end of the longer text until both are equally long, then of both.
        `names` are what errors call the rows (default: "row 7").

        Raises:
            ConfigError: `max_tokens` leaves no room beside the special tokens.
            DataError: a value is no text, or `over_length` is error and texts are too long; names rows.
        """
        room = max_tokens - self.special_tokens(pairs is not None)
        if room < 1:
            special = self.special_tokens(pairs is not None)
            raise ConfigError(f"max_tokens {max_tokens}: the tokenizer adds {special} special tokens; use at least {special + 1}")
        self._check_texts(texts, pairs, names)
        tokens: list[np.ndarray] = []
        types: list[np.ndarray] = []
        full = np.zeros(len(texts), np.int32)
        with_types = pairs is not None and self.has_token_types
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part: list[Any] = list(texts[start : start + TEXTS_AT_ONCE])
            if pairs is not None:
                part = list(zip(part, pairs[start : start + TEXTS_AT_ONCE], strict=True))
            for number, encoding in enumerate(self.backend.encode_batch_fast(part), start):
                ids = encoding.ids
                full[number] = len(ids)
                over = len(ids) > max_tokens
                kept = slice(0) if over and over_length != "cut" else _kept(encoding, room) if over else slice(None)
                tokens.append(np.asarray(ids, np.int32)[kept])
                if with_types:
                    types.append(np.asarray(encoding.type_ids, np.int32)[kept])
        long = np.flatnonzero(full > max_tokens)
        if over_length == "error" and len(long):
            raise DataError(
                f"{len(long)} of {len(texts)} texts have more than {max_tokens} tokens: "
                + _named(long, names, [f" ({full[row]})" for row in long[:NAMED]])
                + "; raise max_tokens, or choose over_length: cut or drop"
            )
        kept_rows = full <= max_tokens if over_length == "drop" else np.ones(len(texts), bool)
        return EncodedTexts(
            Ragged.of(tokens), Ragged.of(types) if with_types else None, full, kept_rows, len(long) if over_length == "cut" else 0
        )

    def _check_texts(self, texts: Sequence[str], pairs: Sequence[str] | None, names: Sequence[str] | None) -> None:
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(pairs)} second texts")
        columns = [texts] if pairs is None else [texts, pairs]
        bad = [row for row, values in enumerate(zip(*columns, strict=True)) if not all(_is_text(value) for value in values)]
        if bad:
            values = [column[bad[0]] for column in columns]
            found = next(value for value in values if not _is_text(value))
            said = "half of a surrogate pair" if isinstance(found, str) else f"a value of type {type(found).__name__}"
            raise DataError(f"{len(bad)} of {len(texts)} rows hold no proper text ({said} in the first): " + _named(np.array(bad), names))


@dataclass(frozen=True)
class LengthReport:
    """How long the texts are, special tokens included, and how many `max_tokens` meets."""

    rows: int
    max_tokens: int
    over: int  # rows longer than max_tokens
    tokens: int  # in all rows, before cutting
    tokens_over: int  # beyond max_tokens
    quantiles: dict[str, int]  # "50 %" -> tokens
    edges: tuple[int, ...]  # of the histogram, one more than counts
    counts: tuple[int, ...]

    @classmethod
    def of(cls, full_lengths: np.ndarray, max_tokens: int, bars: int = 12) -> LengthReport:
        lengths = np.asarray(full_lengths, np.int64)
        shares = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0)
        found = np.quantile(lengths, shares, method="inverted_cdf") if len(lengths) else np.zeros(len(shares), int)
        top = max(int(found[-2] if len(lengths) else 0), max_tokens, bars)  # the last bar takes all that is longer
        width = -(-top // bars)
        counts = np.bincount(np.minimum(np.maximum(lengths - 1, 0) // width, bars - 1), minlength=bars)
        beyond = np.maximum(lengths - max_tokens, 0)
        return cls(
            rows=len(lengths),
            max_tokens=max_tokens,
            over=int((beyond > 0).sum()),
            tokens=int(lengths.sum()),
            tokens_over=int(beyond.sum()),
            quantiles={f"{share:.0%}".replace("%", " %"): int(value) for share, value in zip(shares, found, strict=True)},
            edges=tuple(range(0, width * bars + 1, width)),
            counts=tuple(int(count) for count in counts),
        )

    def lines(self) -> list[str]:
        """For people: quantiles, what is too long, and a bar per stretch of lengths."""
        share, lost = (part / max(whole, 1) for part, whole in ((self.over, self.rows), (self.tokens_over, self.tokens)))
        out = [
            "tokens per row: " + "  ".join(f"{name} {value}" for name, value in self.quantiles.items()),
            f"longer than max_tokens {self.max_tokens}: {self.over} of {self.rows} rows ({share:.1%}), {lost:.1%} of all tokens",
        ]
        tallest = max(self.counts, default=0) or 1
        for place, count in enumerate(self.counts):
            last = place == len(self.counts) - 1
            stretch = f"{self.edges[place] + 1:>6} to {'the end' if last else self.edges[place + 1]:<7}"
            out.append(f"{stretch} {count:>7}  {'#' * round(40 * count / tallest)}".rstrip())
        return out


def _kept(encoding: tokenizers.Encoding, room: int) -> np.ndarray:
    """bool[T]: the special tokens and the first tokens of each text, `room` of them together."""
    text = np.array([-1 if number is None else number for number in encoding.sequence_ids])
    kept = text < 0
    counts = [int((text == 0).sum()), int((text == 1).sum())]
    for number, count in enumerate(shared_room(counts[0], counts[1], room)):
        kept[np.flatnonzero(text == number)[:count]] = True
    return kept


def shared_room(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens two texts of these lengths keep of `room`: the shorter one all of it, up to half, the longer one the rest.

    Equal to transformers' strategy longest_first.
    """
    if first + second <= room:
        return first, second
    small, large = sorted((first, second))
    half = room // 2
    small, large = (small, room - small) if small <= half else (half, room - half)
    return (small, large) if first <= second else (large, small)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(rows: np.ndarray, names: Sequence[str] | None, behind: Sequence[str] | None = None) -> str:
    said = [f"{names[row] if names else f'row {row}'}{behind[place] if behind else ''}" for place, row in enumerate(rows[:NAMED])]
    return ", ".join(said) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")


def _by_file(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer | None:
    """tokenizer.json read as it is; None when there is none or tokenizer_config.json wants something else than it."""
    path = folder / "tokenizer.json"
    if not path.is_file() or _disagree(read_json(path), config):
        return None
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path}: not a tokenizer ({error}); fetch the file again") from error


def _disagree(spec: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether tokenizer_config.json changes what tokenizer.json does: own code, other normalisation, added tokens of its own."""
    if config.get("auto_map"):
        return True
    stages: list[dict[str, Any]] = []
    for stage in (spec.get("normalizer"), spec.get("pre_tokenizer")):
        stage = stage or {}
        stages += stage.get("normalizers") or stage.get("pretokenizers") or [stage]
    same = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}
    pairs = [(ours, theirs, "BertNormalizer") for ours, theirs in same.items()] + [("add_prefix_space", "add_prefix_space", "ByteLevel")]
    for ours, theirs, kind in pairs:
        if ours in config and any(stage.get("type") == kind and stage.get(theirs) != config[ours] for stage in stages):
            return True
    known = {str(token["id"]): token["content"] for token in spec.get("added_tokens") or []}
    return any(known.get(number) != token.get("content") for number, token in (config.get("added_tokens_decoder") or {}).items())


def _by_transformers(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    if not any((folder / name).is_file() for name in VOCABULARIES):
        found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
        raise ModelError(
            f"{folder}: no tokenizer found, expected one of {', '.join(VOCABULARIES)}; the folder holds "
            f"{', '.join(found) or 'nothing'}; give the folder of a model with its tokenizer"
        )
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of many types, by the kind of tokenizer
        if config.get("auto_map"):
            raise UnsafeInputError(
                f"{folder}: its tokenizer is Python code ({config['auto_map']}), which is never run; "
                "use a folder with a plain tokenizer.json and no auto_map in tokenizer_config.json"
            ) from error
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({error}); fetch its files again") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{folder}: {type(loaded).__name__} has no fast implementation; convert it to a tokenizer.json "
            "(tokenizers or transformers can, where its libraries are installed)"
        )
    return backend
