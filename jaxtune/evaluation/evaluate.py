"""Evaluation: one compiled step per batch shape, metrics as device sums, predictions by example id.

Memory does not grow with the split: only the rows that a caller asks to keep reach the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxtune.core.weighted import Weighted
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.parallel.placement import Placement
from jaxtune.tasks.base import Task


@dataclass(frozen=True)
class Predictions:
    """Per-example results on the host, ordered by example id. Without labels there are no logits: C is 0."""

    ids: np.ndarray  # i64[n]
    logits: np.ndarray  # f32[n, C]
    probabilities: np.ndarray  # f32[n, C]
    loss: np.ndarray  # f32[n]
    more: Mapping[str, np.ndarray] = field(default_factory=dict)  # what else the task says of an example, [n]


@dataclass(frozen=True)
class Evaluated:
    """Numbers of one split, and the predictions when they were asked for."""

    metrics: Mapping[str, Any]
    predictions: Predictions | None


@dataclass
class Evaluator:
    """Evaluates parameters of one blueprint on batches of a split."""

    blueprint: Blueprint
    task: Task
    classes: int
    placement: Placement
    compiled: dict[Any, Any] = field(default_factory=dict)

    def step(self, states: Any, params: Flat, variables: Flat, batch: Mapping[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        """States with one batch added, and the batch's predictions; pure."""
        model = self.blueprint.build(params, variables)
        loss, predictions = self.task.assess(model, batch)
        metrics = tuple(
            metric.update(state, predictions, batch) for metric, state in zip(self.task.metrics, states["metrics"], strict=True)
        )
        return {"metrics": metrics, "loss": states["loss"] + loss}, predictions

    def start(self) -> Any:
        """States that have seen nothing, on the devices."""

        def fresh() -> Any:
            return {"metrics": tuple(metric.start(self.classes) for metric in self.task.metrics), "loss": Weighted.zero()}

        if "start" not in self.compiled:
            self.compiled["start"] = jax.jit(fresh, out_shardings=self.placement.replicated)
        return self.compiled["start"]()

    def __call__(self, params: Flat, variables: Flat, batches: Iterable[Any], *, keep: bool = False) -> Evaluated:
        """Evaluates `batches` (objects with `.arrays` on the devices).

        Args:
            keep: also return the predictions of every example.
        """
        states = self.start()
        kept: list[dict[str, np.ndarray]] = []
        for batch in batches:
            program = self.program(states, params, variables, batch.arrays)
            states, predictions = program(states, params, variables, dict(batch.arrays))
            if keep:
                kept.append(jax.device_get({**predictions, "id": batch.arrays["example_id"]}))
        host = jax.device_get(states)
        metrics: dict[str, Any] = {"loss": float(host["loss"].total) / max(float(host["loss"].weight), 1e-30)}
        for metric, state in zip(self.task.metrics, host["metrics"], strict=True):
            metrics.update(metric.compute(state))
        return Evaluated(metrics, gather(kept) if keep else None)

    def infer(self, params: Flat, variables: Flat, batches: Iterable[Any]) -> Predictions:
        """Predictions of batches without labels; their loss is NaN."""

        def step(params: Flat, variables: Flat, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            return self.task.predict(self.blueprint.build(params, variables), batch)

        if "infer" not in self.compiled:
            self.compiled["infer"] = jax.jit(step, out_shardings=self.placement.rows())
        kept = []
        for batch in batches:
            with self.placement.active():
                found = self.compiled["infer"](params, variables, dict(batch.arrays))
            rows = jax.device_get({**found, "id": batch.arrays["example_id"]})
            kept.append({**rows, "loss": np.full(len(rows["id"]), np.nan, np.float32)})
        return gather(kept)

    def program(self, states: Any, params: Flat, variables: Flat, batch: Mapping[str, jax.Array]) -> Any:
        precision = frozenset((name, x.dtype) for name, x in params.items())  # of a frozen one it depends on what other phases train
        key = (precision, *sorted((name, x.shape, str(x.dtype)) for name, x in batch.items()))
        if key not in self.compiled:
            outputs = (self.placement.replicated, self.placement.rows())
            with self.placement.active():
                lowered = jax.jit(self.step, donate_argnums=0, out_shardings=outputs).lower(states, params, variables, dict(batch))
                self.compiled[key] = lowered.compile()
        return self.compiled[key]


def gather(kept: list[dict[str, np.ndarray]]) -> Predictions:
    """Rows of all batches without padding, by example id."""
    joined = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    real = np.flatnonzero(joined["id"] >= 0)
    rows = real[np.argsort(joined["id"][real], kind="stable")]
    found = {name: values[rows] for name, values in joined.items()}
    nothing = np.zeros((len(rows), 0), np.float32)
    return Predictions(found.pop("id"), found.pop("logits", nothing), found.pop("probabilities", nothing), found.pop("loss"), more=found)
