"""One example for the eye: its tokens with what is learned of them, and the text in stretches that are learned or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from jaxtune.data.transforms.tokenize import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One token."""

    token: int
    text: str  # as it stands in the vocabulary
    trained: bool
    segment: int  # 1.. for the texts packed into a row, 0 for padding


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens of one segment that are all learned, or all not, as text."""

    text: str
    trained: bool
    segment: int
    tokens: int


def pieces(tokenizer: Tokenizer, row: Mapping[str, Any]) -> list[Piece]:
    """The tokens of an example, or of one row of a batch."""
    tokens = np.asarray(row["tokens"])
    trained = np.asarray(row["token_weight"]) > 0
    segments = np.asarray(row.get("segment_ids", np.ones(len(tokens), np.int32)))
    columns = (tokens.tolist(), tokenizer.pieces(tokens), trained.tolist(), segments.tolist())
    return [Piece(*one) for one in zip(*columns, strict=True)]


def stretches(tokenizer: Tokenizer, found: list[Piece]) -> list[Stretch]:
    """The text of `pieces`; padding is left out."""
    out = []
    for (trained, segment), group in groupby((piece for piece in found if piece.segment), lambda piece: (piece.trained, piece.segment)):
        tokens = [piece.token for piece in group]
        out.append(Stretch(tokenizer.decode(tokens), trained, segment, len(tokens)))
    return out
