"""Run folders as a run leaves them, made in a moment: real settings and predictions files, invented numbers. For the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics as reference

from jaxtune.config.write import to_yaml
from jaxtune.core.files import plain
from jaxtune.core.printable import printable
from jaxtune.evaluation.evaluate import Predictions
from jaxtune.evaluation.predictions import write_predictions, write_table
from jaxtune.experiment import Experiment
from jaxtune.training.optimizers.adam import AdamW
from jaxtune.training.phase import Phase
from jaxtune.training.schedules.shapes import Cosine

START = 1_790_000_000.0


@dataclass
class MadeRun:
    """A run that never was.

    Attributes:
        names: class names; empty for regression.
        examples: of each split.
        skill: how clearly the answers follow the truth; another skill gives another run on the same examples.
        checked: with evaluations.jsonl, lengths, content keys, suspects and near copies, as runs of today leave them.
    """

    problem: str = "single_label"
    names: Sequence[str] = ("business", "politics", "tech")
    examples: int = 200
    steps: int = 120
    domain: str = "text"
    base: Any = "package://some_package/model"
    splits: Sequence[str] = ("validation", "test")
    events: list[dict[str, Any]] = field(default_factory=list)
    phases: int = 2
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    truth: Any = None
    skill: float = 2.5
    checked: bool = False
    data: str | None = "fingerprint-of-data"

    def write(self, folder: Path) -> Path:
        """The folder, complete but for the report."""
        folder.mkdir(parents=True)
        self.folder, self.random = folder, np.random.default_rng(self.seed)
        self.measure()
        (folder / "resolved.yaml").write_text(to_yaml(self.experiment()), encoding="utf-8")
        numbers = {"best_step": self.best_step, "steps": self.steps, "seconds": 2.0 * self.steps, **self.metrics}
        numbers |= {"examples_per_second": 123.4, "tokens_per_second": 9876.0, "compile_seconds": 6.0, "peak_memory_bytes": 3 << 30}
        self.json("result.json", numbers)
        self.json("environment.json", {"starts": [self.environment()]})
        self.lines("metrics.jsonl", self.rows())
        self.lines("events.jsonl", [*self.phase_events(), *self.events])
        if self.checked:
            self.check()
        return folder

    def check(self) -> None:
        """Two suspects and two near copies among the rows that are shown, and a table by class and length at every evaluation."""
        names = list(self.names) or ["none"]
        rows = [int(i) for i in self.predictions[self.splits[-1]].ids[:2]]
        suspects = {"row": rows, "label": names[:1] * 2, "suggested": names[-1:] * 2, "probability": [0.01, 0.2], "margin": [0.9, 0.5]}
        write_table(self.folder / "predictions" / "suspects.parquet", suspects)
        near = {
            "row": rows,
            "split": [self.splits[-1]] * 2,
            "other_row": [900, 901],
            "other_split": ["train"] * 2,
            "likeness": [0.95, 0.75],
        }
        write_table(self.folder / "predictions" / "near_duplicates.parquet", near)
        labels = {"state": "done", "rows": 400, "not_judged": 3, "suspects": 2, "noise": 0.005, "probe_accuracy": 0.93, "seconds": 12.5}
        copies = {"state": "done", "rows": 800, "pairs": 2, "near_training": dict.fromkeys(self.splits[-1:], 2), "seconds": 0.8}
        self.json("checks.json", {"labels": labels, "near_duplicates": copies})
        told = [{"by": "class", "name": printable(name, 80), "size": 9, "loss": 0.3} for name in self.names]
        self.lines(
            "evaluations.jsonl",
            [{"step": step, "slices": [{**part, "score": 0.5 + 0.004 * step} for part in told]} for step in range(10, self.steps, 10)],
        )

    # -- files ----------------------------------------------------------------------------------------------------------

    def json(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(plain(value)), encoding="utf-8")

    def lines(self, name: str, rows: Sequence[Any]) -> None:
        (self.folder / name).write_text("".join(json.dumps(plain(row)) + "\n" for row in rows), encoding="utf-8")

    def experiment(self) -> Experiment:
        phases = tuple(
            Phase(train=("head.*",) if number + 1 < self.phases else ("*",), steps=10, optimizer=AdamW(schedule=Cosine(peak=1e-4)))
            for number in range(self.phases)
        )
        return Experiment.model_validate(
            {
                "name": "made",
                "model": {"base": self.base},
                "task": {"kind": f"{self.domain}_classification", "problem": self.problem},
                "data": {"source": {"kind": "text_folder", "path": "somewhere"}, "split": {"kind": "random"}, "batch_size": 8},
                "phases": phases,
            }
        )

    def environment(self) -> dict[str, Any]:
        return {
            "time": moment(0), "command": ["/x/bin/jaxtune", "train", "made.yaml", "name=a b"], "python": "3.12.1", "platform": "Linux",
            "versions": {"jaxtune": "0.1.0", "jax": "0.12.0"}, "git": {"jaxtune": {"commit": "abc123", "dirty": True}, "here": None},
            "devices": ["cpu:0", "cpu:1"], "data": self.data, "licence": "apache-2.0",
        }  # fmt: skip

    # -- numbers --------------------------------------------------------------------------------------------------------

    @property
    def best_step(self) -> int:
        return self.steps * 5 // 6

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for step in range(1, self.steps + 1):
            done = step / self.steps
            noise = float(self.random.normal(0, 0.12))
            rows.append(
                {
                    "step": step, "split": "train", "loss": 1.6 * math.exp(-3 * done) + 0.1 + noise * (1.2 - done), "learning_rate": 1e-4 * (1 - done),
                    "examples": 8, "tokens": 500, "seconds": 2.0, "wait_seconds": 0.5, "compiled": step == 1, "time": START + 20 + 3 * step,
                }
            )  # fmt: skip
            if "validation" in self.splits and step % max(1, self.steps // 12) == 0:
                level = 1 - math.exp(-4 * done) - 0.1 * (done > 0.85)
                each = [level - 0.03 * i for i in range(len(self.names))]
                numbers = {name: level for name, value in self.metrics["validation"].items() if not isinstance(value, list)}
                rows.append(
                    {"step": step, "split": "validation", **numbers, "loss": 1.7 * math.exp(-2.4 * done) + 0.25, "f1_per_class": each,
                     "best": step <= self.best_step, "time": START + 21 + 3 * step}
                )  # fmt: skip
        return rows

    def phase_events(self) -> list[dict[str, Any]]:
        found = []
        for number in range(self.phases):
            whole = number + 1 == self.phases
            table = [trained("*", 10, 1000)] if whole else [trained("head.*", 2, 10), {**trained("(frozen)", 8, 990), "trains": False}]
            step = number * self.steps // self.phases
            found.append({"time": moment(20 + 3 * step), "event": "phase", "step": step, "phase": number, "table": table})
        found.append({"time": moment(19), "event": "compiled", "seconds": 4.0})
        found.append({"time": moment(40), "event": "saving", "step": 5, "stall_seconds": 0.25})
        return found

    def measure(self) -> None:
        """Predictions and what a run would have measured of them."""
        total = self.examples * 2
        classes = max(len(self.names), 1)
        for index, split in enumerate(self.splits):
            ids = np.arange(index, total, 2)[: self.examples]
            logits = self.random.normal(size=(len(ids), classes)).astype(np.float32)
            if self.problem == "single_label":
                label = self.random.integers(0, classes, len(ids))
                logits[np.arange(len(ids)), label] += self.skill
                p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                loss, answer = -np.log(p[np.arange(len(ids)), label]), p.argmax(1)
                self.remember(ids, [self.names[i] for i in label], total)
                self.metrics[split] = {"loss": loss.mean(), "accuracy": reference.accuracy_score(label, answer), "f1": f1(label, answer)}
            elif self.problem == "multi_label":
                target = self.random.random((len(ids), classes)) < 0.3
                p = 1 / (1 + np.exp(-(logits + 1.2 * self.skill * target - 1.5)))
                loss = -np.where(target, np.log(p), np.log1p(-p)).mean(1)
                self.remember(ids, [[self.names[i] for i in np.flatnonzero(row)] for row in target], total)
                self.metrics[split] = {"loss": loss.mean(), "accuracy": (target == (p > 0.5)).all(1).mean(), "f1": f1(target, p > 0.5)}
            else:
                true = self.random.normal(20, 6, len(ids))
                p = (true + self.random.normal(0.4, 2, len(ids)) * 2.5 / self.skill)[:, None].astype(np.float32)
                loss = (p[:, 0] - true) ** 2
                self.remember(ids, true.tolist(), total)
                self.metrics[split] = {"loss": loss.mean(), "mean_squared_error": loss.mean(), "pearson": np.corrcoef(p[:, 0], true)[0, 1]}
            self.predictions[split] = Predictions(ids, logits, p.astype(np.float32), loss.astype(np.float32))
            path = self.folder / "predictions" / f"{split}.parquet"
            more = {"tokens": [5 + i % 90 for i in range(total)], "key": [f"key {i}" for i in range(total)]} if self.checked else {}
            write_predictions(path, self.predictions[split], self.names, self.problem, self.truth, more)  # type: ignore[arg-type]
        for split in {"validation", "test"} - set(self.splits):
            self.metrics[split] = {}

    def remember(self, ids: np.ndarray, labels: Sequence[Any], total: int) -> None:
        if self.truth is None:
            self.truth = [labels[0]] * total
        for i, label in zip(ids, labels, strict=True):
            self.truth[i] = label


def trained(pattern: str, arrays: int, parameters: int) -> dict[str, Any]:
    """A line of the table of what trains, of 1000 parameters."""
    return {"pattern": pattern, "arrays": arrays, "parameters": parameters, "share": parameters / 1000, "trains": True}


def f1(truth: np.ndarray, answer: np.ndarray) -> float:
    return float(reference.f1_score(truth, answer, average="macro", zero_division=0))


def moment(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(START + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S%z")
