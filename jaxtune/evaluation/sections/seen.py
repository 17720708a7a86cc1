"""What all sections look at: the run's record, the split of interest with its outcomes, intervals, and the records if they are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jaxtune.data.sources.base import Records
from jaxtune.evaluation import charts
from jaxtune.evaluation.analysis import class_scores
from jaxtune.evaluation.bootstrap import Interval, intervals
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.record import Row, RunRecord, number

WIDE, MIDDLE, NARROW = 860, 420, 340  # drawn for a desk, for half of it, and for a telephone; style shows the one that fits


@dataclass(frozen=True)
class Figure:
    """One chart in two widths."""

    wide: Markup
    narrow: Markup

    @property
    def file(self) -> str:
        return charts.alone(self.wide)


@dataclass(frozen=True)
class Seen:
    """A run, ready to be told.

    Attributes:
        split: test where there is one, otherwise validation.
        outcomes: of that split; None when the predictions were not kept.
        intervals: per split and metric.
    """

    record: RunRecord
    records: Records | None
    split: str
    outcomes: Outcomes | None
    intervals: Mapping[str, Mapping[str, Interval | list[Interval]]]

    @classmethod
    def of(cls, record: RunRecord, records: Records | None) -> Seen:
        outcomes = record.outcomes.get(record.split)
        found = {
            split: intervals(kept, _measured(record.result[split], kept), bins=record.calibration_bins)
            for split, kept in record.outcomes.items()
            if record.result.get(split)
        }
        return cls(record, records, record.split, outcomes if outcomes is not None and len(outcomes) else None, found)

    @property
    def measured(self) -> Row:
        """The split's numbers."""
        return self.record.result.get(self.split, {})

    @property
    def classified(self) -> Outcomes | None:
        """The outcomes, when they are classes."""
        return None if self.outcomes is None or self.outcomes.problem == "regression" else self.outcomes

    def interval(self, split: str, name: str) -> Interval | None:
        found = self.intervals.get(split, {}).get(name)
        return found if isinstance(found, Interval) else None


def _measured(result: Row, outcomes: Outcomes) -> dict[str, Any]:
    """A split's numbers as floats; F1 per class always among them, because the page shows it whatever was measured."""
    told = {name: [number(v) for v in value] if isinstance(value, list) else number(value) for name, value in result.items()}
    return told if outcomes.problem == "regression" else {"f1_per_class": class_scores(outcomes).f1.tolist()} | told
