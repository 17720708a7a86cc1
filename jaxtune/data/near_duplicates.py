"""Examples of different splits that are nearly the same: a test text that is a training text with a few words changed.

Exact copies are kept on one side by the split (data/duplicates.py); what is only nearly equal is found here and shown, not moved, because
whether a new edition of an article is a leak is for a person to say. Texts are compared by the share of word groups that they have in
common; MinHash (Broder 1997) with banding finds the pairs worth comparing, so the time grows with the rows and not with the pairs.
Images are compared by a perceptual hash (Zauner 2010) and then by the correlation of small grey pictures.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.data.duplicates import normal_text

GROUP_WORDS = 3
HASHES, BAND = 128, 4  # 32 bands of 4: texts that share 70 % of their groups meet with probability 0.9998, 40 % with 0.56
TEXT_LIKENESS = 0.7  # share of word groups in common (Jaccard)
IMAGE_LIKENESS = 0.97  # correlation of grey values
HASH_DISTANCE = 12  # of 64 bits; what agrees by chance is told apart by the correlation
SIDE = 32
MOST_IN_A_BUCKET = 40  # beyond it a bucket holds boilerplate; rows are then compared with their neighbours in it only
_BLOCK = 4096  # word groups hashed at once
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Pair:
    """Two rows that say nearly the same; `likeness` of 1 is the same."""

    first: int
    second: int
    likeness: float


# -- texts ------------------------------------------------------------------------------------------------------------------


def near_texts(texts: Sequence[str], sides: Sequence[Any], *, least: float = TEXT_LIKENESS, seed: int = 0) -> list[Pair]:
    """Pairs of texts on different sides whose word groups are alike, the most alike first; texts without a word are left out.

    Args:
        sides: of every text, such as its split; texts of one side are not compared.
        least: the smallest likeness, the Jaccard index of the sets of groups of three words.
    """
    known: dict[str, int] = {}
    groups = [word_groups(text, known) for text in texts]
    marks = signatures(groups, seed=seed)
    found = []
    for a, b in sorted(candidates(marks, [len(g) > 0 for g in groups], sides)):
        likeness = jaccard(groups[a], groups[b])
        if likeness >= least:
            found.append(Pair(a, b, likeness))
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def word_groups(text: str, known: dict[str, int] | None = None) -> np.ndarray:
    """The sorted hashes u64 of a text's groups of three words following each other (of all its words when there are fewer).

    Args:
        known: hashes of words seen so far, so that each word is hashed once.
    """
    known = {} if known is None else known
    hashes = [known.get(word) or known.setdefault(word, zlib.crc32(word.encode()) + 1) for word in _WORD.findall(normal_text(text))]
    if not hashes:
        return np.empty(0, np.uint64)
    words = np.array(hashes, np.uint64)
    size = min(GROUP_WORDS, len(words))
    total = np.zeros(len(words) - size + 1, np.uint64)
    for offset in range(size):  # arithmetic modulo 2^64; the order of the words counts
        total = total * np.uint64(0x9E3779B97F4A7C15) + words[offset : len(words) - size + 1 + offset]
    return np.unique(total)


def signatures(groups: Sequence[np.ndarray], *, hashes: int = HASHES, seed: int = 0) -> np.ndarray:
    """MinHash u64[n, hashes]: two texts agree in a column with the probability of their Jaccard index."""
    random = np.random.default_rng(seed)
    factor = random.integers(1, 2**63, hashes, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offset = random.integers(0, 2**63, hashes, dtype=np.uint64)
    out = np.zeros((len(groups), hashes), np.uint64)
    for row, group in enumerate(groups):
        if len(group):
            parts = [group[start : start + _BLOCK] for start in range(0, len(group), _BLOCK)]
            out[row] = np.min([_mixed(part[:, None] * factor + offset).min(0) for part in parts], axis=0)
    return out


def _mixed(x: np.ndarray) -> np.ndarray:
    """The low bits of a product depend on the low bits of its factors alone, so the high half is folded in and mixed again."""
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


def candidates(marks: np.ndarray, usable: Sequence[bool], sides: Sequence[Any]) -> set[tuple[int, int]]:
    """Pairs of rows on different sides that agree in a whole band of their signatures."""
    found: set[tuple[int, int]] = set()
    rows = np.flatnonzero(np.asarray(usable, bool))
    for start in range(0, marks.shape[1], BAND):
        buckets: dict[bytes, list[int]] = {}
        for row in rows.tolist():
            buckets.setdefault(marks[row, start : start + BAND].tobytes(), []).append(row)
        for bucket in buckets.values():
            found.update(_across(bucket, sides))
    return found


def _across(bucket: list[int], sides: Sequence[Any]) -> Iterator[tuple[int, int]]:
    reach = len(bucket) if len(bucket) <= MOST_IN_A_BUCKET else MOST_IN_A_BUCKET // 2
    for place, a in enumerate(bucket):
        for b in bucket[place + 1 : place + 1 + reach]:
            if sides[a] != sides[b]:
                yield a, b


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection over size of the union of two sorted sets; two empty ones have nothing in common."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common) if len(a) or len(b) else 0.0


# -- images -----------------------------------------------------------------------------------------------------------------


def near_images(small: np.ndarray, sides: Sequence[Any], *, least: float = IMAGE_LIKENESS) -> list[Pair]:
    """Pairs of images on different sides that look alike, the most alike first; images of one colour are left out.

    Args:
        small: f32[n, SIDE, SIDE], each made by `small_grey`.
        least: the smallest correlation of the grey values.
    """
    marks = perceptual_hashes(small)
    unit = small.reshape(len(small), -1).astype(np.float32)
    unit = unit - unit.mean(1, keepdims=True)
    size = np.linalg.norm(unit, axis=1)
    usable = size > 1e-4 * unit.shape[1]
    unit /= np.where(usable, size, 1.0)[:, None]
    names = np.unique(np.asarray(sides), return_inverse=True)[1]
    found = []
    for a in np.flatnonzero(usable).tolist():
        later = np.arange(a + 1, len(small))
        distance = np.bitwise_count(marks[a] ^ marks[a + 1 :])
        for b in later[(distance <= HASH_DISTANCE) & (names[a + 1 :] != names[a]) & usable[a + 1 :]].tolist():
            likeness = float(unit[a] @ unit[b])
            if likeness >= least:
                found.append(Pair(a, b, min(likeness, 1.0)))
    return sorted(found, key=lambda pair: (-pair.likeness, pair.first, pair.second))


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """An image [Y,X] or [Y,X,C] as grey values f32[SIDE, SIDE], by averaging; the proportions are not kept."""
    from PIL import Image

    values = np.asarray(pixels, np.float32)
    if values.ndim == 3:
        values = values[:, :, :3].mean(2) if values.shape[2] >= 3 else values[:, :, 0]
    return np.asarray(Image.fromarray(np.nan_to_num(values)).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """u64[n]: which of the 64 lowest frequencies of a cosine transform (without the mean) lie above their median."""
    k, x = np.arange(9)[:, None], np.arange(SIDE)[None]
    waves = np.cos(np.pi * (2 * x + 1) * k / (2 * SIDE))
    low = np.einsum("ky,nyx,lx->nkl", waves, small.astype(np.float64), waves)[:, :8, :8].reshape(len(small), 64)
    low[:, 0] = 0.0  # the mean brightness says nothing about what is seen
    bits = low > np.median(low, axis=1, keepdims=True)
    return (bits * (np.uint64(1) << np.arange(64, dtype=np.uint64))).sum(1, dtype=np.uint64)
