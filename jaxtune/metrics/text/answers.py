"""Short answers, right or nearly right: exact match, and F1 over the words (Rajpurkar et al. 2016)."""

from __future__ import annotations

from collections import Counter

from pydantic import Field

from jaxtune.metrics.text.base import TextMetric, harmonic, plain_answer


class ExactMatch(TextMetric):
    """`exact_match`: 1 where the answer is the reference, else 0."""

    plain: bool = Field(
        default=True, description="capitals, punctuation, English articles and extra spaces make no difference, as in SQuAD"
    )

    @property
    def names(self) -> tuple[str, ...]:
        return ("exact_match",)

    def score(self, generated: str, reference: str) -> dict[str, float]:
        same = plain_answer(generated) == plain_answer(reference) if self.plain else generated == reference
        return {"exact_match": float(same)}


class TokenF1(TextMetric):
    """`token_f1`: F1 of the words that answer and reference share, as in SQuAD; two empty answers are equal."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("token_f1",)

    def score(self, generated: str, reference: str) -> dict[str, float]:
        said, expected = plain_answer(generated).split(), plain_answer(reference).split()
        if not said or not expected:
            return {"token_f1": float(said == expected)}
        shared = (Counter(said) & Counter(expected)).total()
        return {"token_f1": harmonic(shared / len(said), shared / len(expected))}
