"""What a checkpoint brings along to read records, and the limits under which a task encodes them: two plain arguments for every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxtune.data.transforms.image import ImageProcessor
    from jaxtune.data.transforms.tokenize import Tokenizer


@dataclass(frozen=True)
class Processor:
    """The part that the model's domain needs is set; the other is None."""

    tokenizer: Tokenizer | None = None
    image: ImageProcessor | None = None


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        max_tokens: longest sequence of a row; None where only the model limits it, or there are no tokens.
        over_length: what happens to longer rows: cut them, drop them, or stop with an error that names them.
        cache: folder for encoded rows; None keeps them in memory.
        key: fingerprint of the records and their transforms; with the processor's it names what lies in the cache.
    """

    max_tokens: int | None = None
    over_length: Literal["cut", "drop", "error"] = "cut"
    cache: Path | None = None
    key: str = ""
