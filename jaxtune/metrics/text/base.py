"""What a text metric is: named scores of one generated text against its reference. The score of a set is the mean over its examples."""

from __future__ import annotations

import re
import string
from abc import abstractmethod

from jaxtune.core.component import Component

_WORD = re.compile(r"[^\W_]+")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextMetric(Component):
    """One score, or a few that come from the same counts. A greater score is the better one."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the scores."""

    @abstractmethod
    def score(self, generated: str, reference: str) -> dict[str, float]:
        """Each score by name."""


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits of any alphabet."""
    return _WORD.findall(text.lower())


def plain_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, without English articles, single spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def harmonic(precision: float, recall: float, beta: float = 1.0) -> float:
    """F: recall counts `beta` times as much as precision; 0 where both are."""
    weighted = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / weighted if weighted > 0 else 0.0
