"""The order of the data as a plan: which rows make up every batch of every epoch, and how wide each batch is.

A plan is a pure function of lengths, seed and epoch, so all hosts know the whole order without talking to each other, the
position of a run is one integer, and nothing has to be replayed after a restart.

An epoch is cut from one line of rows: widest length bucket first, shuffled inside the bucket. A batch is as wide as its
first row needs and takes the next rows of the line, so a bucket's leftover place is filled from the next narrower bucket:
each row comes once per epoch, only the last and narrowest batch can have padded rows, and the number of batches of each
width is the same in every epoch. Then the batches are shuffled. Real tokens among all, batch size 32 (tests/data/test_plan.py):
BBC News up to 512 tokens 92 % with 3 widths (one width: 78 %); log-normal lengths up to 256 tokens 88 % with 8 widths (one: 40 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Planned:
    """One global batch: `rows` int64[B] are row numbers of the examples, -1 where the row only fills up.

    Where several examples share a row (pack.py), `rows` is int64[B, S]: S places for examples, -1 where empty.
    """

    width: int | None  # tokens per row; None without tokens
    rows: np.ndarray

    @property
    def examples(self) -> int:
        return int((self.rows >= 0).sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Batches for `rows` examples, each of `batch_size` rows, or of as many rows as keep it within `batch_tokens` tokens.

    `lengths` (int[rows]) and `widths` (ascending) belong to token data and are None for images. `divisor` is the number every
    batch's rows must divide by (hosts x accumulation x data shards). Without `shuffle`, rows come longest first: for evaluation.

    Raises:
        ConfigError: no rows, a row longer than the last width, or a batch that does not divide (all are named).
    """

    rows: int
    lengths: np.ndarray | None = None
    widths: tuple[int, ...] | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    seed: int = 0
    shuffle: bool = True
    divisor: int = 1
    _recent: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if (self.lengths is None) != (self.widths is None):
            raise ValueError("lengths and widths go together")
        problems = batch_problems(self.batch_size, self.batch_tokens, self.widths, self.divisor)
        if self.rows < 1:
            problems.append("found no rows to make batches of; check the split and the filters")
        if self.lengths is not None and self.widths is not None:
            too_long = np.flatnonzero(np.asarray(self.lengths) > self.widths[-1])
            if len(too_long):
                problems.append(
                    f"{len(too_long)} rows are longer than the widest batch of {self.widths[-1]} tokens "
                    f"(rows {', '.join(map(str, too_long[:5]))}); cut them or raise max_tokens"
                )
        if problems:
            raise ConfigError(problems)

    def batch_rows(self, width: int | None) -> int:
        """Rows in a batch of this width, over all hosts."""
        if self.batch_size is not None:
            return self.batch_size
        assert self.batch_tokens is not None and width is not None
        return self.batch_tokens // width // self.divisor * self.divisor

    def epoch(self, number: int) -> list[Planned]:
        """The batches of an epoch, in order."""
        return [self.batch(number * self.steps() + index) for index in range(self.steps())]

    def batch(self, step: int) -> Planned:
        """Batch `step`, counted from the beginning of epoch 0."""
        epoch, index = self.locate(step)
        line, order = self._order(epoch)
        start, width = self._cuts[order[index]]
        taken = line[start : start + self.batch_rows(width)]
        rows = np.full((self.batch_rows(width), *line.shape[1:]), -1, np.int64)
        rows[: len(taken)] = taken
        return Planned(width, rows)

    def steps(self, epoch: int = 0) -> int:
        """Batches in an epoch; the same for every epoch."""
        return len(self._cuts)

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch that batch `step` belongs to, and its index there."""
        return divmod(step, self.steps())

    def tokens(self, planned: Planned) -> int:
        """Real tokens in a batch; 0 without lengths."""
        return 0 if self.lengths is None else int(self.lengths[planned.rows[planned.rows >= 0]].sum())

    def real_token_share(self) -> float:
        """Real tokens (without lengths: real rows) among all places of an epoch's batches; the same for every epoch."""
        places = sum(self.batch_rows(width) * (width or 1) for _, width in self._cuts)
        return (self.rows if self.lengths is None else float(np.sum(self.lengths, dtype=np.int64))) / places

    @cached_property
    def _buckets(self) -> np.ndarray:
        """Place in `widths` of the narrowest one that holds each row."""
        if self.lengths is None:
            return np.zeros(self.rows, np.int64)
        return np.searchsorted(np.asarray(self.widths), self.lengths)

    @cached_property
    def _cuts(self) -> list[tuple[int, int | None]]:
        """Start in the line and width of every batch. The line is sorted by bucket, so shuffling inside buckets changes nothing here."""
        line = -np.sort(-self._buckets)
        cuts, start = [], 0
        while start < self.rows:
            width = None if self.widths is None else self.widths[line[start]]
            cuts.append((start, width))
            start += self.batch_rows(width)
        return cuts

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The line of rows of an epoch, and the order in which its batches are taken."""
        made = self._recent.get(epoch)
        if made is not None:
            return made
        made = self._arranged(epoch)
        for old in list(self._recent):
            if old != epoch - 1:  # prefetching threads cross from one epoch into the next: two are kept
                self._recent.pop(old, None)
        self._recent[epoch] = made
        return made

    def _arranged(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.shuffle:
            lengths = np.zeros(self.rows, np.int64) if self.lengths is None else np.asarray(self.lengths, np.int64)
            return np.argsort(-lengths, kind="stable"), np.arange(self.steps())
        random = np.random.default_rng([self.seed, epoch])
        shuffled = random.permutation(self.rows)
        return shuffled[np.argsort(-self._buckets[shuffled], kind="stable")], random.permutation(self.steps())

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what follows from them is found again."""
        return {**{one.name: self.__dict__[one.name] for one in fields(self)}, "_recent": {}}


def batch_problems(batch_size: int | None, batch_tokens: int | None, widths: Sequence[int] | None, divisor: int = 1) -> list[str]:
    """What is wrong with a batch size, each with what to do; empty when nothing is. `divisor` as in `Plan`."""
    if (batch_size is None) == (batch_tokens is None):
        found = "both" if batch_size is not None else "neither"
        return [f"batch_size, batch_tokens: found {found}; give exactly one of them"]
    if batch_size is not None:
        if batch_size < 1 or batch_size % divisor:
            near = max(divisor, round(batch_size / divisor) * divisor)
            return [f"batch_size {batch_size} does not divide by {divisor} (hosts x accumulation x data shards); use for example {near}"]
        return []
    assert batch_tokens is not None
    if widths is None:
        return [f"batch_tokens {batch_tokens}: the examples have no tokens; use batch_size"]
    if batch_tokens < widths[-1] * divisor:
        return [
            f"batch_tokens {batch_tokens} does not hold {divisor} rows (hosts x accumulation x data shards) of {widths[-1]} tokens; "
            f"use at least {widths[-1] * divisor}, or a smaller max_tokens"
        ]
    return []


def choose_widths(
    lengths: np.ndarray,
    maximum: int,
    multiple_of: int = 8,
    at_most: int = 8,
    enough: float = 0.9,
    batch_size: int | None = None,
) -> tuple[int, ...]:
    """The fewest widths whose batches hold the share `enough` of real tokens, else the best `at_most` of them, ascending.

    `maximum` is the last width, whatever the lengths are: rows of other splits may be that long. The others are multiples
    of `multiple_of`. Each width costs one compilation. The choice is exact, by dynamic programming over the lengths that
    decide a batch's width: all of them, or with `batch_size` only those of the rows that begin a batch in `Plan`.

    Raises:
        ConfigError: no lengths, or one above `maximum`.
    """
    lengths = np.sort(np.asarray(lengths, np.int64))[::-1]
    if not len(lengths) or lengths[0] > maximum:
        found = f"a row of {lengths[0]} tokens" if len(lengths) else "no rows"
        raise ConfigError(f"widths up to {maximum} tokens: found {found}; cut the rows, raise max_tokens or check the split")
    leaders = lengths[:: batch_size or 1]
    needed = np.minimum(-(-np.maximum(leaders, 1) // multiple_of) * multiple_of, maximum)
    edges, counts = np.unique(np.append(needed, maximum), return_counts=True)
    counts[-1] -= 1  # the one appended
    below = np.concatenate([[0], np.cumsum(counts)])  # leaders that need less than edge i
    real = lengths.sum() / (batch_size or 1)

    # cost[i]: places in all batches whose leader needs at most edge i - 1, when edge i - 1 is a width
    cost = edges * below[1:]
    cost = np.concatenate([[0], cost]).astype(np.float64)
    cost[0] = np.inf
    chosen, fewest = (int(maximum),), cost[-1]
    back: list[np.ndarray] = []
    for _ in range(1, at_most):
        if real >= enough * fewest:
            break
        step = cost[:-1, None] + edges[None, :] * (below[None, 1:] - below[:-1, None])  # from edge i - 1 as previous width to edge j
        step[np.tril_indices_from(step, -1)] = np.inf
        back.append(np.argmin(step, axis=0))
        cost = np.concatenate([[np.inf], np.min(step, axis=0)])
        if cost[-1] < fewest:
            chosen, fewest = _walk(edges, back), cost[-1]
    return chosen


def _walk(edges: np.ndarray, back: list[np.ndarray]) -> tuple[int, ...]:
    place = len(edges) - 1
    chosen = [int(edges[place])]
    for previous in reversed(back):
        place = int(previous[place]) - 1
        chosen.append(int(edges[place]))
    return tuple(reversed(chosen))
