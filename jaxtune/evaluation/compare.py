"""Two runs on the examples that both predicted: paired differences, examples fixed and broken, what was set otherwise, what it cost.

Paired, because two runs mostly fail on the same hard examples: the interval of the difference is then far narrower than the intervals of
the two numbers suggest, and comparing those would call real gains noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.core.nested import differences
from jaxtune.evaluation.bootstrap import Interval, affordable, compute, draw
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.record import RunRecord, data_of, number
from jaxtune.metrics.base import better

COSTS = {
    "seconds": "seconds of training", "compile_seconds": "seconds of compiling", "peak_memory_bytes": "peak memory",
    "examples_per_second": "examples per second", "steps": "steps",
}  # fmt: skip
ALWAYS = {
    "single_label": ("accuracy", "f1", "matthews", "loss", "expected_calibration_error"),
    "multi_label": ("accuracy", "label_accuracy", "f1", "loss", "expected_calibration_error"),
    "regression": ("mean_squared_error", "mean_absolute_error", "pearson", "r2", "loss"),
}


@dataclass(frozen=True)
class Difference:
    """One number of both runs on the shared examples; `interval` is of second minus first."""

    name: str
    first: float
    second: float
    interval: Interval | None
    higher_is_better: bool

    @property
    def change(self) -> float:
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)

    @property
    def is_better(self) -> bool:
        return self.is_clear and (self.change > 0) == self.higher_is_better


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        split: that was compared.
        pair: outcomes of both on the shared examples, in one order, classes in one order.
        left_out: what was not compared, in words.
        numbers, classes: differences over all examples, and of F1 per class.
        fixed, broken: positions of examples that only the second, only the first got right; those with the largest change of the loss first.
        mcnemar: exact p that as many are fixed as broken; None for numbers.
        settings: (dotted key, first, second) where the experiments differ.
        costs: (what, first, second).
    """

    first: RunRecord
    second: RunRecord
    split: str
    pair: tuple[Outcomes, Outcomes]
    left_out: tuple[str, ...]
    numbers: tuple[Difference, ...]
    classes: tuple[Difference, ...]
    fixed: np.ndarray
    broken: np.ndarray
    mcnemar: float | None
    settings: tuple[tuple[str, Any, Any], ...]
    costs: tuple[tuple[str, float | None, float | None], ...]

    @property
    def best(self) -> Difference:
        """The number that decides, of the first run's experiment; the first one where that was not computed."""
        return next((d for d in self.numbers if d.name == self.first.best_metric), self.numbers[0])


def compare(first: Path, second: Path) -> Comparison:
    """Compares two run folders on the test split (validation where one has no test).

    Raises:
        ConfigError: a folder is no run that has ended, or they have nothing to compare: other data, other classes, no predictions.
    """
    records = RunRecord.read(first), RunRecord.read(second)
    a, b = records
    if a.problem != b.problem:
        raise ConfigError(f"{first} is {a.problem} and {second} is {b.problem}; only runs of the same kind of problem can be compared")
    if a.problem is None:
        raise ConfigError(
            f"{first} and {second} are {a.task['kind']} runs, whose examples carry no labels to compare by; their numbers stand in result.json and "
            "in their reports"
        )
    where = next((s for s in ("test", "validation") if s in a.outcomes and s in b.outcomes), None)
    if where is None:
        lacking = [record for record in records if not record.outcomes] or records
        raise ConfigError(
            f"{' and '.join(str(record.folder) for record in lacking)}: no predictions of a split that both runs have; "
            "evaluation.predictions: true keeps them"
        )
    pair, left_out = matched(a, b, where)
    fixed, broken = _changed(pair)
    return Comparison(
        a, b, where, pair, left_out, metric_differences(*pair, bins=a.calibration_bins, also=a.best_metric), class_differences(*pair), fixed, broken,
        None if a.problem == "regression" else mcnemar(len(fixed), len(broken)),
        tuple(differing(a, b)), tuple(_costs(a, b)),
    )  # fmt: skip


# -- which examples ---------------------------------------------------------------------------------------------------------


def matched(a: RunRecord, b: RunRecord, split: str) -> tuple[tuple[Outcomes, Outcomes], tuple[str, ...]]:
    """The outcomes of both on the examples that both predicted, and what was left out.

    Raises:
        ConfigError: the data are others.
    """
    one, other = with_shared_classes(a.outcomes[split], b.outcomes[split])
    prints = data_of(a.folder), data_of(b.folder)
    if prints[0] == prints[1] and prints[0] is not None:
        here, there = _numbered(one.rows.tolist()), _numbered(other.rows.tolist())
    elif one.keys is not None and other.keys is not None:
        here, there = _numbered(one.keys.tolist()), _numbered(other.keys.tolist())
        shared = len(here.keys() & there.keys())
        if shared < min(len(here), len(there)) or not shared:
            raise ConfigError(
                f"the runs have other data: {a.folder} has the fingerprint {_short(prints[0])} and {len(one):,} {split} examples, {b.folder} has "
                f"{_short(prints[1])} and {len(other):,}, of which {shared:,} are the same; compare runs on the same data"
            )
    else:
        raise ConfigError(
            f"the runs have other data ({_short(prints[0])} in {a.folder}, {_short(prints[1])} in {b.folder}), and their predictions tell no "
            "content keys by which examples could be matched; compare runs on the same data"
        )
    both = sorted(here.keys() & there.keys(), key=lambda key: here[key])
    if not both:
        raise ConfigError(
            f"the {split} splits of {a.folder} and {b.folder} have no example in common (data.split differs); nothing to compare"
        )
    one, other = one.take(np.array([here[key] for key in both])), other.take(np.array([there[key] for key in both]))
    same = one.truth == other.truth if one.truth.ndim == 1 else (one.truth == other.truth).all(1)
    left_out = []
    if (missing := len(here) + len(there) - 2 * len(both)) > 0:
        left_out.append(f"{missing:,} {split} examples are in one of the runs only")
    if not same.all():
        left_out.append(f"{int((~same).sum()):,} examples have other labels in the two runs")
        one, other = one.take(same), other.take(same)
    if not len(one):
        raise ConfigError(f"all shared {split} examples of {a.folder} and {b.folder} have other labels; nothing to compare")
    return (one, other), tuple(left_out)


def with_shared_classes(a: Outcomes, b: Outcomes) -> tuple[Outcomes, Outcomes]:
    """Both with the classes of either, in the first one's order; a class that a run does not know has probability 0 there."""
    if a.problem == "regression" or a.names == b.names:
        return a, b
    names = tuple(dict.fromkeys((*a.names, *b.names)))
    return _renamed(a, names), _renamed(b, names)


def _renamed(outcomes: Outcomes, names: tuple[str, ...]) -> Outcomes:
    place = np.array([names.index(name) for name in outcomes.names])
    p = np.zeros((len(outcomes), len(names)))
    p[:, place] = outcomes.probabilities

    def moved(values: np.ndarray) -> np.ndarray:
        if values.ndim == 1:
            return place[values]
        out = np.zeros((len(values), len(names)), bool)
        out[:, place] = values
        return out

    columns = (outcomes.rows, moved(outcomes.truth), moved(outcomes.predicted), p, outcomes.loss, outcomes.tokens, outcomes.keys)
    return Outcomes(outcomes.problem, names, *columns)


def _numbered(keys: Sequence[Any]) -> dict[Any, int]:
    """Position by key; copies (of one text in one split) are told apart by their order."""
    found: dict[Any, int] = {}
    seen: dict[Any, int] = {}
    for position, key in enumerate(keys):
        seen[key] = seen.get(key, 0) + 1
        found[key, seen[key]] = position
    return found


def _short(fingerprint: str | None) -> str:
    return "no fingerprint" if fingerprint is None else str(fingerprint)[:12]


# -- numbers ----------------------------------------------------------------------------------------------------------------


def metric_differences(first: Outcomes, second: Outcomes, *, bins: int = 15, also: str = "", seed: int = 0) -> tuple[Difference, ...]:
    """The usual numbers of the problem (and `also`, where predictions give it), with percentile bootstrap intervals of their differences,
    both runs over the same draws of examples."""
    names = tuple(dict.fromkeys((*((also,) if better(also) else ()), *ALWAYS[first.problem])))
    once = [compute(outcomes, np.ones((1, len(outcomes))), names, bins) for outcomes in (first, second)]
    spread = _spread(first, second, names, bins, seed)
    return tuple(
        Difference(name, float(once[0][name][0]), float(once[1][name][0]), spread.get(name), better(name) == "max")  # type: ignore[arg-type]
        for name in names
        if name in once[0]
    )


def class_differences(first: Outcomes, second: Outcomes, *, seed: int = 0) -> tuple[Difference, ...]:
    """F1 of every class that occurs."""
    if first.problem == "regression":
        return ()
    once = [compute(outcomes, np.ones((1, len(outcomes))), ["f1_per_class"])["f1_per_class"][0] for outcomes in (first, second)]
    spread = _spread(first, second, ["f1_per_class"], 15, seed).get("f1_per_class")
    support = np.bincount(first.truth, minlength=first.classes) if first.truth.ndim == 1 else first.truth.sum(0)
    return tuple(
        Difference(first.shown[i], float(once[0][i]), float(once[1][i]), spread[i] if isinstance(spread, list) else None, True)
        for i in np.flatnonzero(support).tolist()
    )


def _spread(first: Outcomes, second: Outcomes, names: Sequence[str], bins: int, seed: int) -> dict[str, Interval | list[Interval]]:
    if len(first) < 2:
        return {}
    parts: dict[str, list[np.ndarray]] = {}
    for weights in draw(len(first), affordable(first), seed):
        one, other = (compute(outcomes, weights, names, bins) for outcomes in (first, second))
        for name in one:
            parts.setdefault(name, []).append(other[name] - one[name])
    found: dict[str, Interval | list[Interval]] = {}
    for name, drawn in parts.items():
        sample = np.concatenate(drawn)
        if not np.isnan(sample).all(0).any():
            ends = np.nanquantile(sample, [0.025, 0.975], axis=0).T.tolist()
            found[name] = Interval(*ends) if sample.ndim == 1 else [Interval(*pair) for pair in ends]
    return found


def _changed(pair: tuple[Outcomes, Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    """(fixed, broken): positions, the largest change of the loss first; of numbers those whose error changed most."""
    a, b = pair
    gain = np.nan_to_num(a.loss, nan=np.inf, posinf=1e30) - np.nan_to_num(b.loss, nan=np.inf, posinf=1e30)
    if a.problem == "regression":
        fixed, broken = gain > 0, gain < 0
    else:
        right = [x.truth == x.predicted if x.truth.ndim == 1 else (x.truth == x.predicted).all(1) for x in pair]
        fixed, broken = ~right[0] & right[1], right[0] & ~right[1]
    order = np.argsort(-gain, kind="stable")
    return order[fixed[order]], order[::-1][broken[order[::-1]]]


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p of McNemar's test: the chance of a split at least as uneven when fixing and breaking are equally likely."""
    n, k = fixed + broken, min(fixed, broken)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * math.fsum(math.exp(value) for value in logs))


# -- settings and costs -----------------------------------------------------------------------------------------------------


def differing(first: RunRecord, second: RunRecord) -> list[tuple[str, Any, Any]]:
    """(dotted key, first, second) of settings that differ, and what was changed while they ran. The name is no setting."""
    found = [(key, a, b) for key, (a, b) in differences(first.experiment, second.experiment).items() if key != "name"]
    changed = [", ".join(f"step {step}: {words}" for step, words in record.adjustments) or "nothing" for record in (first, second)]
    return [*found, ("changed while it ran", changed[0], changed[1])] if changed[0] != changed[1] else found


def _costs(a: RunRecord, b: RunRecord) -> list[tuple[str, float | None, float | None]]:
    def of(record: RunRecord, name: str) -> float | None:
        return number(record.result[name]) if name in record.result else None

    found = [(name, of(a, name), of(b, name)) for name in COSTS]
    most = [float(max((phase.trained for phase in record.phases), default=0)) for record in (a, b)]
    return [*(row for row in found if row[1:] != (None, None)), ("trained parameters", most[0], most[1])]
