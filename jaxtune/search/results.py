"""What a search found, from the storage alone: the winner and its file, the numbers of search.json, what mattered, the rows of trials.jsonl."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxtune.config.write import settings_to_yaml, to_yaml
from jaxtune.core.files import plain, write_whole
from jaxtune.experiment import load_experiment
from jaxtune.search.ledger import NARROWED, Ledger, Record, ranked
from jaxtune.search.settings import Search
from jaxtune.search.space import Space, overlay

WINNER = "winner.yaml"
ENOUGH_TRIALS = 10  # for a statement about what mattered
TOP = 0.25  # the share of the trials that counts as good there
Status = Literal["running", "interrupted", "failed", "done"]


@dataclass(frozen=True)
class Finalist:
    """A trial and what it gave with other seeds."""

    record: Record
    values: tuple[float, ...]
    failed: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def to_json(self) -> dict[str, Any]:
        numbers = {"mean": self.mean, "least": min(self.values), "greatest": max(self.values)} if self.values else {}
        return {"trial": self.record.number, "first": self.record.value, "values": list(self.values), "failed": self.failed, **numbers}


@dataclass(frozen=True)
class Found:
    """A search so far.

    Attributes:
        order: trials with a number, best first.
        finalists: best first; those that failed with another seed last.
        winner: the trial that winner.yaml is made of; None until one has trained to its end.
        importance: key -> share, of how the good trials differ from the others; empty where there are too few trials.
    """

    records: tuple[Record, ...]
    order: tuple[Record, ...]
    finalists: tuple[Finalist, ...]
    winner: Record | None
    importance: Mapping[str, float]
    repeats: tuple[Mapping[str, Any], ...]
    narrowed: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, ledger: Ledger, repeats: Sequence[Mapping[str, Any]], higher_is_better: bool) -> Found:
        records = ledger.records()
        order = ranked(records, higher_is_better)
        finalists = finalists_of(order, repeats, higher_is_better)
        proven = [finalist.record for finalist in finalists if finalist.values and not finalist.failed]
        complete = [found for found in order if found.state == "complete"]
        winner = next(iter(proven or complete), None)
        rounds = sorted((fact for name, fact in ledger.facts().items() if name.startswith(NARROWED)), key=lambda fact: fact["round"])
        return cls(tuple(records), tuple(order), tuple(finalists), winner, importance(ledger, records), tuple(repeats), tuple(rounds))

    def total(self, fact: str) -> float:
        """Of all trials and repeats."""
        rows: list[Mapping[str, Any]] = [found.facts for found in self.records]
        return sum(float(row.get(fact) or 0) for row in [*rows, *self.repeats])

    @property
    def search_steps(self) -> int:
        """Optimizer steps of the trials alone."""
        return sum(found.steps for found in self.records)

    def numbers(self, search: Search, space: Space, wanted: int | None, status: Status) -> dict[str, Any]:
        """search.json."""
        states = Counter(found.state for found in self.records)
        repeated = {finalist.record.number: finalist for finalist in self.finalists}
        won = None
        if self.winner is not None:
            won = {"trial": self.winner.number, "value": self.winner.value, "settings": dict(self.winner.settings), "file": WINNER}
            again = repeated.get(self.winner.number)
            if again is not None and again.values:
                won["repeats"] = again.to_json()
        return {
            "name": search.name,
            "status": status,
            "experiment": str(space.file),
            "metric": space.metric,
            "higher_is_better": space.higher_is_better,
            "strategy": search.model_dump()["strategy"],
            "trials": {"wanted": wanted, **{state: states[state] for state in ("complete", "stopped", "failed", "running")}},
            "steps": self.search_steps,
            "finalist_steps": int(sum(row.get("steps") or 0 for row in self.repeats)),
            "seconds": self.total("seconds"),
            "compilations": int(self.total("compilations")),
            "winner": won,
            "finalists": [finalist.to_json() for finalist in self.finalists],
            "importance": dict(self.importance),
            "narrowed": list(self.narrowed),
        }


def finalists_of(order: Sequence[Record], repeats: Sequence[Mapping[str, Any]], higher_is_better: bool) -> list[Finalist]:
    """By their mean over the other seeds: the number that made them finalists was partly luck."""
    found = []
    for record in order:
        rows = [row for row in repeats if row["trial"] == record.number]
        values = tuple(float(row["value"]) for row in rows if row["value"] is not None)
        if rows:
            found.append(Finalist(record, values, len(rows) - len(values)))
    sign = -1.0 if higher_is_better else 1.0
    return sorted(found, key=lambda one: (one.failed > 0 or not one.values, sign * one.mean if one.values else 0.0, one.record.number))


def importance(ledger: Ledger, records: Sequence[Record]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023): how far the distribution of each setting among the best quarter of the trials is from that among
    all. Trials that were stopped count with what they had reached. Shares that sum to 1, greatest first."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    known = {found.number for found in records if found.state in ("complete", "stopped") and found.value is not None}
    if len(known) < ENOUGH_TRIALS:
        return {}
    study = optuna.create_study(direction=ledger.study.direction)
    for trial in ledger.trials():
        if trial.number in known:
            study.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=trial.value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that many equal values make the shares alike; the shares say so too
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=TOP), normalize=False)
    total = sum(found.values())
    return {key: share / total for key, share in sorted(found.items(), key=lambda item: -item[1])} if total > 0 else {}


def write_results(folder: Path, found: Found, numbers: Mapping[str, Any]) -> None:
    """search.json and trials.jsonl, whole."""
    rows = "".join(json.dumps(plain(record.to_json()), ensure_ascii=False) + "\n" for record in found.records)
    write_whole(folder / "trials.jsonl", rows)
    write_whole(folder / "search.json", json.dumps(plain(numbers), indent=2, ensure_ascii=False) + "\n")


def write_winner(folder: Path, space: Space, name: str, settings: Mapping[str, Any], said: str) -> Path:
    """Writes winner.yaml, which extends the experiment and gives the trial's number again; its path.

    Args:
        name: of the experiment in the file.
        said: how good it was and where that comes from; a comment in the file.
    """
    wanted = {**settings, "name": name}
    experiment = space.experiment(wanted)
    path = folder / WINNER
    where = os.path.relpath(space.file.resolve(), folder.resolve())
    write_whole(path, settings_to_yaml({"extends": where, "name": name, **overlay(space, wanted)}, said))
    if load_experiment(path) != experiment:
        # a section that is replaced by one of the same kind cannot be said by extending; then everything is said
        write_whole(path, to_yaml(experiment, said))
    return path
