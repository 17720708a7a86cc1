"""Everything short of step 1: base model, records, labels, splits, encoded examples, batch plans, and whether they fit each other.

`check`, `preview`, `train`, `evaluate` and `predict` all start here, so what `check` accepts is what `train` runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data import checks
from jaxtune.data.examples import Examples
from jaxtune.data.plan import Plan, choose_widths
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.scan import Scan, scan
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.experiment import Experiment
from jaxtune.models.load import Base, check_licence, open_base
from jaxtune.models.settings import NewModel
from jaxtune.tasks.base import Task, require_columns


@dataclass(frozen=True)
class Prepared:
    """An experiment with everything it reads.

    Attributes:
        task: the experiment's task with what it learned from the training split (class weights).
        names: class names in the order of the head's outputs; empty for regression.
        splits: encoded examples of "train", "validation", "test" (those that exist); example_id is the record number.
        facts: what `check` prints and the run records: rows, labels, lengths, duplicates, fit.
    """

    experiment: Experiment
    base: Base
    processor: Processor
    task: Task
    names: tuple[str, ...]
    scanned: Scan
    splits: Mapping[str, Examples]
    fingerprint: str
    facts: Mapping[str, Any]

    def plan(self, split: str, *, shards: int, training: bool, seed: int = 0, accumulation: int = 1) -> Plan:
        """The order of a split's batches."""
        data = self.experiment.data
        examples = self.splits[split]
        size = data.batch_size if training else (data.evaluation_batch_size or data.batch_size)
        return Plan.of(
            examples.lengths,
            rows=len(examples),
            widths=self.facts["widths"],
            batch_size=size,
            batch_tokens=None if size else data.batch_tokens,
            multiple_of=shards * (accumulation if training else 1),
            seed=seed,
            shuffle=training,
        )


def prepare(experiment: Experiment, *, cache: Path | None = None) -> Prepared:
    """Reads base model, records and tokenizer of an experiment.

    Raises:
        ConfigError: something named in the experiment is not there, or model, task and data do not fit each other.
        DataError: rows that cannot be trained on.
    """
    base = load_base(experiment)
    task, data = experiment.task, experiment.data
    fit_task(base, task)
    processor = load_processor(base, task)
    records = data.source.open()
    light = tuple(dict.fromkeys((task.label, *data.split.needs)))
    scanned = scan(records, data.transforms, task.content, light)
    require_columns(task, scanned.records)
    assignment = data.split.assign(scanned.columns, scanned.keys)
    values = scanned.columns[task.label]
    names = task.find_labels([values[i] for i in assignment["train"]], scanned.records.label_names.get(task.label, ()))
    problems = checks.check_labels(values, assignment, task.problem, names)
    checks.stop(problems)

    key = fingerprint(experiment)
    limit = token_limit(experiment, base, processor)
    limits = Limits(limit, data.over_length, cache or default_cache(), key)
    encoded = task.encode(scanned.records, values, names, processor, limits)
    position = np.full(len(scanned.records), -1, np.int64)
    position[encoded.kept] = np.arange(len(encoded.kept))
    splits = {
        name: encoded.examples.subset(position[rows][position[rows] >= 0]) for name, rows in assignment.items() if len(rows)
    }
    if not len(splits.get("train", ())):
        raise DataError("no training example is left after the over-length policy; raise data.max_tokens or use over_length: cut")
    lengths = splits["train"].lengths
    widths = None if lengths is None else (choose_widths(lengths, limit) if data.widths == "auto" else data.widths)
    facts = {
        "rows": {name: len(examples) for name, examples in splits.items()},
        "dropped": scanned.dropped,
        "labels": checks.label_report(values, assignment, names),
        "duplicates": len(scanned.keys) - len(set(scanned.keys)),
        "encoding": encoded.report,
        "widths": widths,
        "licence": base.licence,
    }
    counts = np.bincount([names.index(str(values[i])) for i in assignment["train"]], minlength=len(names)) if task.problem == "single_label" else None
    if counts is not None:
        task = task.model_copy(update={"loss": task.loss.fit(counts)})
    return Prepared(experiment, base, processor, task, names, scanned, splits, key, facts)


def load_base(experiment: Experiment) -> Base:
    reference = experiment.model.base
    base = open_base(reference.model_dump() if isinstance(reference, NewModel) else reference)
    check_licence(base, experiment.model.allowed_licences)
    return base
