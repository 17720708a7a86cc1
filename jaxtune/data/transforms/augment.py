"""Changes to token rows that are drawn anew in every epoch of training: leaving tokens out, swapping tokens.

They work on encoded rows, after the cache and inside the length bucket, so text is tokenized once; special tokens ([CLS],
[SEP], ...) keep their place and divide the row into texts, so the two texts of a pair never mix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, PrivateAttr

from jaxtune.core.errors import ConfigError
from jaxtune.data.augment import HostAugment
from jaxtune.data.processor import Processor

Row = dict[str, Any]
Share = Annotated[float, Field(gt=0, lt=1)]


class TokenAugment(HostAugment):
    """A change of token rows. Made ready once by `fit` or `protect`, then called for each row."""

    _special_ids: tuple[int, ...] | None = PrivateAttr(default=None)

    def fit(self, processor: Processor) -> Self:
        if processor.tokenizer is None:
            raise ConfigError(f"data.augment: {type(self).__name__} changes texts, but the model reads images; remove it")
        return self.protect(processor.tokenizer.special_ids)

    def protect(self, special_ids: Iterable[int]) -> Self:
        """A copy that never touches these tokens."""
        ready = self.model_copy()
        ready._special_ids = tuple(sorted(special_ids))
        return ready

    def texts(self, tokens: np.ndarray) -> np.ndarray:
        """Which text each token belongs to, 0, 1, ...; -1 for special tokens. int[T] -> int[T]"""
        if self._special_ids is None:
            raise RuntimeError(f"{type(self).__name__} is called before fit() or protect(): it does not know the special tokens")
        special = np.isin(tokens, self._special_ids)
        return np.where(special, -1, np.cumsum(special))


class RandomDeletion(TokenAugment):
    """Leaves each token out with probability `share` (Wei and Zou 2019, "EDA", there with words); one token of each text always stays."""

    share: Share = Field(default=0.1, description="Probability that a token is left out.")

    def __call__(self, row: Row, random: np.random.Generator) -> Row:
        texts = self.texts(row["tokens"])
        kept = (texts < 0) | (random.random(len(texts)) >= self.share)
        for text in np.unique(texts[texts >= 0]):
            places = np.flatnonzero(texts == text)
            if not kept[places].any():
                kept[random.choice(places)] = True
        return {**row, **{name: np.asarray(row[name])[kept] for name in ("tokens", "token_types") if name in row}}


class RandomSwap(TokenAugment):
    """Swaps pairs of tokens inside a text until about `share` of the tokens took part (Wei and Zou 2019, "EDA", there with words)."""

    share: Share = Field(default=0.1, description="Share of the tokens that are swapped with another one of the same text.")

    def __call__(self, row: Row, random: np.random.Generator) -> Row:
        tokens = np.array(row["tokens"])
        texts = self.texts(tokens)
        for text in np.unique(texts[texts >= 0]):
            places = np.flatnonzero(texts == text)
            swaps = min(int(self.share * len(places) / 2 + random.random()), len(places) // 2)  # right on average, also in short texts
            one, other = random.permutation(places)[: 2 * swaps].reshape(2, swaps)
            tokens[one], tokens[other] = tokens[other], tokens[one]
        return {**row, "tokens": tokens}
