"""Keys that are equal when two examples say the same: what a split needs to keep copies on one side.

Text is compared without letter case, white space and Unicode look-alikes, because copies of one article often differ in just those.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def content_key(*values: Any) -> str:
    """The key of one example: of its text, its texts (a pair) or its image (array [Y,X,C]); 40 hexadecimal digits."""
    total = hashlib.sha1(usedforsecurity=False)
    for value in values:
        if isinstance(value, np.ndarray):
            head, data = f"array {value.dtype.str} {value.shape}", np.ascontiguousarray(value).tobytes()
        else:
            head, data = "text", normal_text(value).encode("utf-8", "surrogatepass")
        total.update(f"{head} {len(data)}\n".encode() + data)
    return total.hexdigest()


def normal_text(value: Any) -> str:
    """The form in which texts are compared: NFKC, case folded, white space collapsed; a missing text is an empty one."""
    folded = unicodedata.normalize("NFKC", "" if value is None else str(value)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def content_keys(*columns: Iterable[Any]) -> list[str]:
    """The key of every row of one or more columns of equal length."""
    return [content_key(*row) for row in zip(*columns, strict=True)]


def copies(keys: Sequence[Any]) -> list[list[int]]:
    """Rows with equal keys, for every key that occurs more than once, in order of first occurrence."""
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return [same for same in rows.values() if len(same) > 1]
