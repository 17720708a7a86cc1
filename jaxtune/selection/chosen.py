"""The result of a comparison: the order, what is within noise, the sentence that says so, and the same as JSON and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from markupsafe import Markup

from jaxtune.evaluation.bootstrap import Interval
from jaxtune.selection.candidates import Candidate, Refused
from jaxtune.selection.catalogue import Catalogue
from jaxtune.selection.choose_chart import Point, pareto_front, score_against_cost
from jaxtune.selection.cost import Cost, Timing, TokenizerFit
from jaxtune.selection.scores import Difference, Scores
from jaxtune.selection.transferability import Transferability

MEASURES = {"accuracy": "accuracy", "f1": "macro F1", "f1_micro": "micro F1", "r2": "R2"}


@dataclass(frozen=True)
class Assessed:
    """One candidate's scores and costs.

    Attributes:
        readings: scores of the features as the head reads them and, of texts, of their mean over the tokens.
        cost: None where it was not asked for.
    """

    candidate: Candidate
    model_type: str
    licence: str | None
    max_tokens: int | None
    parameters: int
    readings: Mapping[str, Transferability]
    cost: Cost | None
    tokenizer: TokenizerFit | None
    embedding_seconds: float
    from_cache: bool
    notes: tuple[str, ...] = ()

    @property
    def reading(self) -> str:
        """Where the candidate's knowledge of the labels is found best: the reading with the highest probe."""
        return max(self.readings, key=lambda reading: self.readings[reading].probe.mean)

    @property
    def score(self) -> Transferability:
        return self.readings[self.reading]

    @property
    def price(self) -> float:
        """What cheapness is judged by: GFLOP of training per example, or millions of parameters where no step was compiled."""
        return self.parameters / 1e6 if self.cost is None else self.cost.flops_per_example / 1e9


@dataclass(frozen=True)
class Ranked:
    """A place in the ranking. `ahead` is the difference to the next candidate, `behind` that of the first one to this; both by the probe."""

    place: int
    assessed: Assessed
    ahead: Difference | None
    behind: Difference | None

    @property
    def name(self) -> str:
        return self.assessed.candidate.name

    @property
    def within_noise(self) -> bool:
        """Whether the first candidate may be no better than this one."""
        return self.behind is not None and self.behind.within_noise


@dataclass(frozen=True)
class Chosen:
    """What `choose` found; the best candidate comes first.

    Attributes:
        measure: what the probe and the neighbours are judged by.
        rows: training rows that were scored, of `training_rows`.
        folder: where it was written.
    """

    ranked: tuple[Ranked, ...]
    refused: tuple[Refused, ...]
    measure: str
    rows: int
    training_rows: int
    folds: int
    repeats: int
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def best(self) -> Ranked:
        return self.ranked[0]

    @property
    def tied(self) -> tuple[Ranked, ...]:
        """The best and those within noise of it."""
        return (self.best, *(each for each in self.ranked[1:] if each.within_noise))

    @property
    def verdict(self) -> str:
        """The result in two sentences or three."""
        best, measure = self.best, MEASURES[self.measure]
        said = f"{best.name} comes first: {measure} {shown(best.assessed.score.probe)} by a linear probe on {self.rows} training rows."
        if len(self.ranked) == 1:
            return said.replace("comes first", "is the only candidate that could be compared")
        second = self.ranked[1]
        tied = self.tied
        if len(tied) == 1:
            ahead = second.behind
            assert ahead is not None
            said += f" It is {ahead.mean:.3f} ({ahead.interval.low:.3f} to {ahead.interval.high:.3f}) ahead of {second.name}."
        else:
            others = [each.name for each in tied[1:]]
            said += f" Within noise of it: {', '.join(others)}."
            cheapest = min(tied, key=lambda each: each.assessed.price)
            said += f" The cheapest of these is {cheapest.name} ({price_words(cheapest.assessed)})."
        trained = [each for each in self.ranked if not each.assessed.candidate.is_random]
        random = [each for each in tied if each.assessed.candidate.is_random]
        if random and trained:
            said += " Random weights do as well here: these features tell little about the labels, or the labels are too easy to tell candidates apart."
        return said


def rank(assessed: Sequence[Assessed]) -> tuple[Ranked, ...]:
    """By the probe's mean; equal ones by LogME."""
    order = sorted(assessed, key=lambda each: (-each.score.probe.mean, -each.score.logme))
    first = order[0].score.probe
    ranked = []
    for place, each in enumerate(order):
        after = order[place + 1].score.probe if place + 1 < len(order) else None
        ahead = None if after is None else Difference.of(each.score.probe, after)
        ranked.append(Ranked(place + 1, each, ahead, Difference.of(first, each.score.probe) if place else None))
    return tuple(ranked)


def shown(scores: Scores) -> str:
    """0.947 (0.931 to 0.963)"""
    return f"{scores.mean:.3f} ({scores.interval.low:.3f} to {scores.interval.high:.3f})"


def price_words(assessed: Assessed) -> str:
    """The price with its unit."""
    unit = "million parameters" if assessed.cost is None else "GFLOP per training example"
    return f"{assessed.price:,.3g} {unit}"


# -- for files -----------------------------------------------------------------------------------------------------------------------


def plot(chosen: Chosen, width: int) -> Markup:
    """The chart of all ranked candidates."""
    unit = "million parameters" if chosen.best.assessed.cost is None else "GFLOP per training example"
    return score_against_cost(points(chosen), width, measure=f"{MEASURES[chosen.measure]} of the linear probe", cost=unit)


def points(chosen: Chosen) -> list[Point]:
    return [
        Point(each.name, each.assessed.price, probe.mean, probe.interval, each.assessed.candidate.is_random)
        for each in chosen.ranked
        for probe in (each.assessed.score.probe,)
    ]


def as_json(chosen: Chosen, catalogue: Catalogue) -> dict[str, Any]:
    """Everything that was found, in plain numbers."""
    front = {point.name for point in pareto_front(points(chosen))}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": [str(device) for device in jax.devices()],
        "verdict": chosen.verdict,
        "measure": chosen.measure,
        "rows": chosen.rows,
        "training_rows": chosen.training_rows,
        "folds": chosen.folds,
        "repeats": chosen.repeats,
        "notes": list(chosen.notes),
        "candidates": [_candidate(each, each.name in front, catalogue) for each in chosen.ranked],
        "left_out": [{"name": each.candidate.name, "why": each.why, "reason": each.reason} for each in chosen.refused],
        "catalogue_revised": catalogue.revised,
    }


def _candidate(ranked: Ranked, on_front: bool, catalogue: Catalogue) -> dict[str, Any]:
    each = ranked.assessed
    known = catalogue.find(each.candidate.base)
    return {
        "place": ranked.place,
        "name": ranked.name,
        "random": each.candidate.is_random,
        "model_type": each.model_type,
        "licence": each.licence,
        "max_tokens": each.max_tokens,
        "parameters": each.parameters,
        "within_noise_of_best": ranked.within_noise,
        "behind_best": _difference(ranked.behind),
        "ahead_of_next": _difference(ranked.ahead),
        "within_noise_of_next": ranked.ahead is not None and ranked.ahead.within_noise,
        "on_pareto_front": on_front,
        "reading": each.reading,
        "scores": _all_scores(each.score),
        "readings": {reading: _all_scores(score) for reading, score in each.readings.items()},
        "cost": None if each.cost is None else _cost(each.cost),
        "tokenizer": None if each.tokenizer is None else asdict(each.tokenizer),
        "embedding_seconds": each.embedding_seconds,
        "embeddings_from_cache": each.from_cache,
        "notes": list(each.notes),
        "catalogue": None if known is None else known.model_dump(),
    }


def _all_scores(score: Transferability) -> dict[str, Any]:
    return {
        "probe": _scores(score.probe),
        "neighbours": _scores(score.neighbours),
        "logme": {"value": score.logme, **_interval(score.logme_interval)},
    }


def _scores(scores: Scores) -> dict[str, Any]:
    return {"mean": scores.mean, **_interval(scores.interval), "folds": list(scores.values)}


def _difference(difference: Difference | None) -> dict[str, float] | None:
    return None if difference is None else {"mean": difference.mean, **_interval(difference.interval)}


def _interval(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}


def _cost(cost: Cost) -> dict[str, Any]:
    times = {"step": cost.step, "prediction": cost.prediction}
    plain = {name: value for name, value in vars(cost).items() if not isinstance(value, Timing)}
    return {
        **plain,
        "flops_per_example": cost.flops_per_example,
        **{f"{name}_seconds": {"median": time.median, **_interval(time.range)} for name, time in times.items()},
    }
