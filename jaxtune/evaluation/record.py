"""A run as its folder tells it: settings, numbers step by step, events, predictions, surroundings. Reads files, nothing else.

Whoever looks at runs afterwards (report, comparison, a live page) reads them here, so a file's oddities are known in one place:
steps told twice after a resume or rollback, numbers that JSON cannot hold, evaluations that carry no duration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxtune.config.yaml12 import Yaml12Loader
from jaxtune.core.errors import ConfigError
from jaxtune.core.files import Rows
from jaxtune.evaluation.outcomes import Outcomes, read_outcomes
from jaxtune.tasks.labelled import Problem

Row = Mapping[str, Any]
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class PhaseRecord:
    """What trained in a phase."""

    number: int  # from 0
    step: int  # optimizer steps before it
    steps: int  # that it took
    table: Sequence[Row]  # pattern, arrays, parameters, share, trains
    settings: Row  # its part of the experiment

    @property
    def trained(self) -> int:
        return sum(row["parameters"] for row in self.table if row["trains"])

    @property
    def parameters(self) -> int:
        return sum(row["parameters"] for row in self.table)


@dataclass(frozen=True)
class Times:
    """Where the seconds of a run went; `rest` is what none of the others claims (loading, the final evaluation, lost steps)."""

    steps: float
    waiting: float
    compiling: float
    evaluating: float
    saving: float
    rest: float

    @property
    def total(self) -> float:
        return self.steps + self.waiting + self.compiling + self.evaluating + self.saving + self.rest


@dataclass(frozen=True)
class RunRecord:
    """One run, read once."""

    folder: Path
    resolved_text: str
    experiment: Row
    result: Row
    rows: Sequence[Row]
    events: Sequence[Row]
    starts: Sequence[Row]
    outcomes: Mapping[str, Outcomes] = field(repr=False)
    evaluations: Sequence[Row] = ()  # by class and by length, one row an evaluation
    checks: Row = field(default_factory=dict)  # what was looked for in the data

    @classmethod
    def read(cls, folder: Path, *, ended: bool = True) -> RunRecord:
        """Of a run that has ended; with `ended` False also of one without a result, which is empty then.

        Raises:
            ConfigError: it is no run folder, or the run has no result yet.
        """
        needed = ("resolved.yaml", "result.json") if ended else ("resolved.yaml",)
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise ConfigError(f"{folder}: {' and '.join(missing)} missing; expected the folder of a run that has ended (state.json tells)")
        text = (folder / "resolved.yaml").read_text(encoding="utf-8")
        experiment = yaml.load(text, Yaml12Loader)
        problem = experiment["task"].get("problem")
        return cls(
            folder=folder,
            resolved_text=text,
            experiment=experiment,
            result=json_file(folder / "result.json"),
            rows=list(Rows(folder / "metrics.jsonl").read()),
            events=list(Rows(folder / "events.jsonl").read()),
            starts=read_starts(folder),
            outcomes={}
            if problem is None
            else {s: read_outcomes(path, problem) for s in SPLITS if (path := folder / "predictions" / f"{s}.parquet").is_file()},
            evaluations=list(Rows(folder / "evaluations.jsonl").read()),
            checks=json_file(folder / "checks.json"),
        )

    # -- settings -------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def task(self) -> Row:
        return self.experiment["task"]

    @property
    def problem(self) -> Problem | None:
        """What kind of label the task gives; None where it gives none, and then there are no outcomes."""
        return self.task.get("problem")

    @property
    def best_metric(self) -> str:
        return self.task["best"]

    @property
    def calibration_bins(self) -> int:
        return next((m["bins"] for m in self.task["metrics"] if m["kind"] == "expected_calibration_error"), 15)

    @property
    def split(self) -> str:
        """The split that is looked at closely: test where there is one."""
        return "test" if self.result.get("test") else "validation"

    # -- numbers by step ------------------------------------------------------------------------------------------------

    def curve(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) f64 in order of the steps; of a step told twice the later word holds."""
        told = {row["step"]: number(row[name]) for row in self.rows if row.get("split") == split and name in row}
        steps = sorted(told)
        return np.array(steps, np.float64), np.array([told[step] for step in steps], np.float64)

    def class_curve(self, name: str) -> np.ndarray:
        """f64[evaluations, C] of a number per class on the validation split."""
        told = {row["step"]: row[name] for row in self.rows if row.get("split") == "validation" and name in row}
        return np.array([[number(v) for v in told[step]] for step in sorted(told)], np.float64)

    def slice_curve(self, by: str, name: str) -> np.ndarray:
        """f64[evaluations] of a part's score on validation; empty where it was not followed."""
        told = {
            row["step"]: number(part["score"])
            for row in self.evaluations
            for part in row["slices"]
            if (part["by"], part["name"]) == (by, name)
        }
        return np.array([told[step] for step in sorted(told)], np.float64)

    # -- phases ---------------------------------------------------------------------------------------------------------

    @cached_property
    def phases(self) -> tuple[PhaseRecord, ...]:
        """In order; a phase that was resumed is told once."""
        begun: dict[int, Row] = {}
        for event in self.events:
            if event["event"] == "phase":
                known = begun.get(event["phase"])
                begun[event["phase"]] = event if known is None or event["step"] < known["step"] else known
        found = [begun[key] for key in sorted(begun)]
        ends = [event["step"] for event in found[1:]] + [self.result.get("steps", 0)]
        settings = self.experiment["phases"]
        return tuple(
            PhaseRecord(event["phase"], event["step"], max(0, end - event["step"]), event["table"], settings[event["phase"]])
            for event, end in zip(found, ends, strict=True)
        )

    @cached_property
    def adjustments(self) -> tuple[tuple[int, str], ...]:
        """(step, what was changed) while the run trained; what a resumed run took up again is told once."""
        taken = ((event["step"], " ".join(event["changes"])) for event in self.events if event["event"] == "adjusted")
        return tuple(dict.fromkeys(taken))

    # -- time -----------------------------------------------------------------------------------------------------------

    @cached_property
    def times(self) -> Times:
        """Of all steps that count, over restarts. A step that had to be compiled first counts as compiling."""
        train = [row for row in self.rows if row.get("split") == "train"]
        timed = [row for row in train if not row["compiled"]]
        waiting = _total(timed, "wait_seconds")
        steps = _total(timed, "seconds") - waiting
        compiling = _total(self._named("compiled"), "seconds") + _total((row for row in train if row["compiled"]), "seconds")
        evaluating = sum(
            max(0.0, row["time"] - before["time"])  # the step's own row is written just before its evaluation begins
            for before, row in zip(self.rows, self.rows[1:], strict=False)
            if row.get("split") == "validation" and before.get("step") == row.get("step")
        )
        saving = _total(self._named("saving"), "stall_seconds")
        known = steps + waiting + compiling + evaluating + saving
        return Times(steps, waiting, compiling, evaluating, saving, max(0.0, self.wall_seconds - known))

    @cached_property
    def wall_seconds(self) -> float:
        """From each start to the last sign of life before the next one."""
        begun = sorted(_moment(start["time"]) for start in self.starts)
        signs = sorted([row["time"] for row in self.rows if "time" in row] + [_moment(event["time"]) for event in self.events])
        total = 0.0
        for index, start in enumerate(begun):
            end = begun[index + 1] if index + 1 < len(begun) else math.inf
            total += max((sign for sign in signs if start <= sign < end), default=start) - start
        return total

    def _named(self, kind: str) -> list[Row]:
        return [event for event in self.events if event["event"] == kind]


def number(value: Any) -> float:
    """A number as JSON holds it: NaN and infinities are words there."""
    return float(value)


def data_of(folder: Path) -> str | None:
    """The fingerprint of the run's data, as its newest start wrote it down."""
    starts = read_starts(folder)
    return starts[-1].get("data") if starts else None


def json_file(path: Path) -> Row:
    """A JSON object; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_starts(folder: Path) -> list[Row]:
    """What environment.json says of every start of the run."""
    return list(json_file(folder / "environment.json").get("starts", []))


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _total(rows: Iterable[Row], name: str) -> float:
    return sum(number(row[name]) for row in rows)
