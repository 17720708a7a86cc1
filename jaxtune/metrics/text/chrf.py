"""chrF (Popović 2015): F-score over runs of characters, for languages where words are hard to find or have many forms."""

from __future__ import annotations

from collections import Counter

from pydantic import Field

from jaxtune.metrics.text.base import TextMetric, harmonic


class Chrf(TextMetric):
    """`chrf`: precision and recall of runs of 1 to `longest` characters without spaces, averaged over the lengths, as one F-score."""

    longest: int = Field(default=6, ge=1, description="characters of the longest runs")
    beta: float = Field(default=2.0, gt=0, allow_inf_nan=False, description="how much more recall counts than precision")

    @property
    def names(self) -> tuple[str, ...]:
        return ("chrf",)

    def score(self, generated: str, reference: str) -> dict[str, float]:
        said, expected = "".join(generated.split()), "".join(reference.split())
        precisions, recalls = [], []
        for length in range(1, min(self.longest, len(said), len(expected)) + 1):
            ours, theirs = runs(said, length), runs(expected, length)
            shared = (ours & theirs).total()
            precisions.append(shared / ours.total())
            recalls.append(shared / theirs.total())
        count = max(len(precisions), 1)
        return {"chrf": harmonic(sum(precisions) / count, sum(recalls) / count, self.beta)}


def runs(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))
