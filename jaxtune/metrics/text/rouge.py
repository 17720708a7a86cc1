"""ROUGE (Lin 2004): words, pairs of words and the longest common subsequence, as F1. Without stemming, on letters of any alphabet.

On English text the numbers are those of the package rouge-score; that one drops all letters beyond a to z.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from jaxtune.metrics.text.base import TextMetric, harmonic, words


class Rouge(TextMetric):
    """`rouge_1`, `rouge_2`, `rouge_l`: F1 of the words, of the pairs of neighbouring words, and of the longest common subsequence."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("rouge_1", "rouge_2", "rouge_l")

    def score(self, generated: str, reference: str) -> dict[str, float]:
        said, expected = words(generated), words(reference)
        return {
            "rouge_1": overlap(said, expected),
            "rouge_2": overlap(list(pairwise(said)), list(pairwise(expected))),
            "rouge_l": f1(longest_common(said, expected), len(said), len(expected)),
        }


def overlap[T](said: Sequence[T], expected: Sequence[T]) -> float:
    """F1 of what both hold, each as often as the rarer of the two has it."""
    return f1((Counter(said) & Counter(expected)).total(), len(said), len(expected))


def f1(shared: int, said: int, expected: int) -> float:
    return harmonic(shared / said, shared / expected) if said and expected else 0.0


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence; a row of the table is one whole number (Hyyrö 2004), so long texts cost little."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & every
    return len(first) - row.bit_count()
