"""Runs made of numbers alone, for the rules of advice: one phase or two, a curve, facts; everything healthy unless it is changed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.config.write import to_yaml
from jaxtune.core.files import plain
from jaxtune.experiment import Experiment

GUESS = math.log(3)


def learning(done: float) -> float:
    """A healthy training loss: from a fresh head to nearly nothing."""
    return 0.1 + 1.2 * math.exp(-6 * done)


def generalising(done: float) -> float:
    return 0.2 + 0.9 * math.exp(-6 * done)


def improving(done: float) -> float:
    return 0.95 - 0.6 * math.exp(-8 * done)


@dataclass
class Made:
    """A run with `steps` optimizer steps; curves are functions of the share that is done."""

    steps: int = 100
    train: Any = learning
    validation: Any = generalising
    metric: Any = improving
    every: int = 10
    batch: int = 16
    noise: float = 0.1
    norm: Any = lambda done: 2.0 * math.exp(-2 * done) + 0.2
    parts: Any = lambda done: {"embeddings": 0.5, "layers.0": 0.6, "layers.1": 0.7, "head": 1.0}
    wait: float = 0.0005
    seconds: float = 0.1
    best: int | None = None
    recall: tuple[float, ...] = (0.95, 0.9, 0.93)
    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "linear", "peak": 1e-3, "warmup": 0.1})
    facts: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=lambda: {"status": "done", "exit_code": 0})
    events: list[dict[str, Any]] = field(default_factory=list)
    devices: tuple[str, ...] = ("cpu:0",)
    earlier: bool = False  # a first phase of the head with 20 steps stands before it

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        random = np.random.default_rng(0)
        begin = 20 if self.earlier else 0
        rows: list[dict[str, Any]] = []

        def train_row(step: int, loss: float, done: float) -> dict[str, Any]:
            return {
                "step": step, "split": "train", "loss": loss, "learning_rate": self.schedule.get("peak", self.schedule.get("rate")),
                "gradient_norm": self.norm(done), "examples": self.batch, "tokens": 200, "seconds": self.seconds, "wait_seconds": self.wait,
                "compiled": step == 1, "time": 1.8e9 + step,
            }  # fmt: skip

        def evaluation(step: int, done: float) -> dict[str, Any]:
            return {
                "step": step, "split": "validation", "loss": self.validation(done), "accuracy": self.metric(done), "f1": self.metric(done),
                "recall_per_class": list(self.recall), "best": True, "time": 1.8e9 + step,
            }  # fmt: skip

        for step in range(1, begin + 1):
            rows.append(train_row(step, self.train(0.0) + 0.5 * (1 - step / begin) + random.normal(0, self.noise), 0.0))
        if self.earlier:
            rows.append(evaluation(begin, 0.0))
        for step in range(1, self.steps + 1):
            done = step / self.steps
            loss = self.train((step - 1) / self.steps)
            rows.append(train_row(begin + step, loss + random.normal(0, self.noise * min(1.0, loss)), done))
            if step % self.every == 0 or step == self.steps:
                rows[-1]["gradient_norm_by_part"] = self.parts(done)
                rows.append(evaluation(begin + step, done))
        phases = [
            {"train": ["*"], "steps": self.steps, "optimizer": {"kind": "adamw", "schedule": self.schedule, **self.optimizer}, **self.phase}
        ]
        head = {"train": ["head.*"], "steps": 20, "optimizer": {"kind": "adamw", "schedule": {"kind": "constant", "rate": 1e-3}}}
        experiment = Experiment.model_validate(
            {
                "name": "made",
                "model": {"base": "package://some_package/model"},
                "task": {"kind": "text_classification", **self.task},
                "data": {
                    "source": {"kind": "text_folder", "path": "x"},
                    "split": {"kind": "random"},
                    "batch_size": self.batch,
                    **self.data,
                },
                "phases": [head, *phases] if self.earlier else phases,
                "evaluation": {"every_steps": 10},
            }
        )
        table = [{"pattern": "*", "arrays": 3, "parameters": 10, "share": 1.0, "trains": True}]
        begun = [{"event": "phase", "step": 0, "phase": 0, "table": table, "time": "2026-11-23T20:00:00+0000"}]
        if self.earlier:
            begun.append({**begun[0], "step": begin, "phase": 1})
        total = begin + self.steps
        start = {"time": begun[0]["time"], "devices": list(self.devices), "processors": 4, "python": "3.12", "platform": "Linux"}
        found = {
            "resolved.yaml": to_yaml(experiment),
            "metrics.jsonl": "".join(json.dumps(plain(row)) + "\n" for row in rows),
            "events.jsonl": "".join(json.dumps(event) + "\n" for event in [*begun, *self.events]),
            "facts.json": json.dumps(self.all_facts(begin)),
            "state.json": json.dumps(self.state),
            "checks.json": json.dumps(self.checks),
            "environment.json": json.dumps({"starts": [start]}),
        }
        if self.state["status"] == "done":
            found["result.json"] = json.dumps({"best_step": self.best or total - 20, "steps": total, "validation": {"f1": 0.9}, "test": {}})
        for name, text in found.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder

    def all_facts(self, begin: int) -> dict[str, Any]:
        counts = {"a": 100, "b": 100, "c": 100}
        phases = [{"steps": self.steps, "epoch_steps": 19}]
        return {
            "rows": {"train": 300, "validation": 100, "test": 100},
            "labels": {"train": counts, "validation": dict.fromkeys(counts, 33), "test": dict.fromkeys(counts, 33)},
            "copies": {"repeated": 0, "rows": 0, "left_out": 0, "conflicts": 0, "seen_in_training": {"validation": 0, "test": 0}},
            "tokens": {"limit": 64, "possible": 512, "rows_cut": 0.02, "tokens_cut": 0.01, "quantiles": {"50%": 30, "95%": 60, "100%": 90}},
            "padding": {"widths": [64], "share": 0.2, "auto_widths": [32, 64], "auto_share": 0.1},
            "phases": [{"steps": 20, "epoch_steps": 19}, *phases] if begin else phases,
            "device": {"platform": "cpu", "memory_bytes": 16 << 30},
            **self.facts,
        }
