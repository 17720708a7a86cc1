"""Everything short of step 1: base model, records, labels, splits, encoded examples, batch plans, and whether they fit each other.

`check`, `preview`, `train`, `evaluate` and `predict` all start here, so what `check` accepts is what `train` runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.folders import cache_folder
from jaxtune.data import cache as disk
from jaxtune.data import checks
from jaxtune.data.examples import Examples
from jaxtune.data.pack import PackedPlan, packed_width
from jaxtune.data.plan import Plan, choose_widths
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.report import label_report, split_report
from jaxtune.data.scan import Cleaned, Scan, apply, scan
from jaxtune.experiment import Experiment
from jaxtune.models.family import Outputs
from jaxtune.models.load import Base, check_licence, open_base
from jaxtune.models.settings import NewModel
from jaxtune.tasks.base import Task
from jaxtune.tasks.labelled import LabelledTask, Problem


@dataclass(frozen=True)
class Subject:
    """An experiment's model side: enough to load a run and use it on other data.

    Attributes:
        task: the experiment's task, bound to the processor; after `prepare` also with what it learned from training rows (class weights).
        names: class names in the order of the head's outputs; empty for regression.
    """

    experiment: Experiment
    base: Base
    processor: Processor
    task: Task
    names: tuple[str, ...]

    @property
    def outputs(self) -> Outputs:
        """What head the task needs."""
        return self.task.outputs(self.names)

    @property
    def classes(self) -> int:
        """Outputs per example; 0 where the head gives the vocabulary."""
        return self.outputs if isinstance(self.outputs, int) else 0

    @property
    def problem(self) -> Problem | None:
        """What kind of label the task gives; None where it gives none."""
        return self.task.problem if isinstance(self.task, LabelledTask) else None

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens; None without tokens."""
        return token_limit(self.experiment, self.base, self.processor)

    @property
    def row_limit(self) -> int | None:
        """Longest row of a batch in tokens; a pair has two sequences in a row."""
        return None if self.limit is None else self.task.row_tokens(self.limit)


@dataclass(frozen=True)
class Prepared(Subject):
    """An experiment with everything it reads.

    Attributes:
        splits: encoded examples of "train", "validation", "test" (those that exist); example_id is the record number.
        fingerprint: of source, transforms and columns.
        facts: what `check` prints and the run records: rows, labels, lengths, duplicates.
    """

    scanned: Scan
    splits: Mapping[str, Examples]
    fingerprint: str
    facts: Mapping[str, Any]

    @property
    def truth(self) -> list[Any] | None:
        """The label of every record; None where the task reads none."""
        return self.scanned.columns[self.task.label] if isinstance(self.task, LabelledTask) else None

    def full_length(self, record: int) -> int:
        """Tokens of a record before cutting; 0 without tokens."""
        lengths = next(iter(self.splits.values())).facts.get("full_length")
        return 0 if lengths is None else int(lengths[record])

    @property
    def known_of_rows(self) -> dict[str, Any]:
        """What predictions carry of every record beside its label: the content key, and the length before cutting where there are tokens."""
        lengths = next(iter(self.splits.values())).facts.get("full_length")
        return {"key": self.scanned.keys} | ({} if lengths is None else {"tokens": np.asarray(lengths).tolist()})

    def plan(self, split: str, *, divisor: int, training: bool, seed: int = 0) -> Plan:
        """The order of a split's batches; every batch's rows divide by `divisor`.

        Raises:
            ConfigError: the batch size does not.
        """
        data, examples = self.experiment.data, self.splits[split]
        own = None if training else data.evaluation_batch_size
        packed = training and data.packing != "none"
        try:
            return (PackedPlan if packed else Plan)(
                rows=len(examples),
                lengths=examples.lengths,
                widths=self.facts["packed_widths" if packed else "widths"],
                batch_size=own or data.batch_size,
                batch_tokens=None if own else data.batch_tokens,
                seed=seed,
                shuffle=training,
                divisor=divisor,
            )
        except ConfigError as error:
            raise ConfigError([f"data.{'evaluation_' if own else ''}{problem}" for problem in error.problems]) from error


def prepare(experiment: Experiment, *, cache: Path | None = None) -> Prepared:
    """Reads base model, records and tokenizer of an experiment.

    Raises:
        ConfigError: something named in the experiment is not there, or model, task and data do not fit each other.
        DataError: rows that cannot be trained on.
    """
    subject = open_subject(experiment, ())
    base, processor, task, data, limit = subject.base, subject.processor, subject.task, experiment.data, subject.limit
    records = data.source.open()
    scanned = scan(records, data.transforms, task.content, tuple(dict.fromkeys((*task.light, *data.split.needs))))
    parts = data.split.assign(scanned.columns, scanned.keys)
    checks.stop_on(task.check(scanned.columns, parts), source_rows=scanned.records.rows)
    names = task.find_names(scanned.columns, parts, scanned.records.label_names)
    key = data_fingerprint(experiment)
    limits = Limits(limit, data.over_length, cache or cache_folder("data"), key)
    encoded = task.encode(scanned.records, names, processor, limits)
    splits = take(encoded.examples, encoded.kept, parts)
    labels = scanned.columns[task.label] if isinstance(task, LabelledTask) and names else None
    facts = {
        "rows": {name: len(examples) for name, examples in splits.items()},
        "dropped_by_transforms": scanned.dropped,
        "labels": label_report(labels, parts, names) if labels is not None else None,
        "split": split_report(parts, scanned.keys, labels),
        "encoding": encoded.report,
        "widths": batch_widths(experiment, splits["train"].lengths, subject.row_limit),
        "packed_widths": packed_widths(experiment, splits["train"].lengths),
        "licence": base.licence,
    }
    fitted = task.fit(scanned.columns, parts, names)
    return Prepared(experiment, base, processor, fitted, names, scanned, splits, key, facts)


def data_fingerprint(experiment: Experiment) -> str:
    """Of source, transforms and columns: equal for equal records in the same order."""
    data = experiment.data
    return disk.fingerprint(
        {"source": data.source.fingerprint(), "transforms": [repr(t) for t in data.transforms], "columns": experiment.task.columns}
    )


def open_records(experiment: Experiment) -> Cleaned:
    """The records as `prepare` numbers them, without model and tokenizer: for looking at what a run has predicted.

    Raises:
        ConfigError, DataError: they are not there.
    """
    source, transforms = experiment.data.source.open(), experiment.data.transforms
    rows = [row for row in range(len(source)) if apply(transforms, source[row]) is not None] if transforms else range(len(source))
    fields = source.fields
    for transform in transforms:
        fields = transform.fields_after(fields)
    return Cleaned(source, tuple(transforms), np.array(rows, np.int64), fields)


def open_subject(experiment: Experiment, names: tuple[str, ...]) -> Subject:
    """The model side of an experiment; no data is touched.

    Raises:
        ConfigError, ModelError: base, processor and task are not there or do not fit each other.
    """
    base = load_base(experiment)
    processor = experiment.task.processor(base)
    subject = Subject(experiment, base, processor, experiment.task.bind(processor), names)
    padded = experiment.data.widths != "auto" and experiment.data.packing == "none"
    if subject.row_limit is not None and padded and experiment.data.widths[-1] != subject.row_limit:
        raise ConfigError(
            f"data.widths: the last must be the longest row, {subject.row_limit} tokens (by data.max_tokens), found {experiment.data.widths[-1]}"
        )
    return subject


def load_base(experiment: Experiment) -> Base:
    """The base model's config and headers, if its licence is allowed and its family serves the task.

    Raises:
        ConfigError, ModelError: it is not there, not allowed, or of another domain.
    """
    reference = experiment.model.base
    base = open_base(reference.model_dump() if isinstance(reference, NewModel) else reference)
    check_licence(base, experiment.model.allowed_licences)
    if base.family.domain != experiment.task.domain:
        raise ConfigError(
            f"model.base {base.reference} is a {base.family.model_type} model for {base.family.domain}s, but the task reads {experiment.task.domain}s; "
            f"choose a base for {experiment.task.domain}s or another task.kind"
        )
    if experiment.task.outputs(()) == "language" and not base.family.generates:
        raise ConfigError(
            f"model.base {base.reference} is a {base.family.model_type} model, which predicts no next token; choose a decoder for "
            "this task.kind (Llama, Qwen, Gemma and others; jaxtune describe families), or another task.kind"
        )
    model = experiment.model
    if not base.family.stacked and (model.scan_layers != "auto" or model.remat != "none" or model.attention != "auto"):
        raise ConfigError(
            f"model.scan_layers, model.remat, model.attention: have no effect on {base.family.model_type}, whose blocks differ; leave them out"
        )
    return base


def token_limit(experiment: Experiment, base: Base, processor: Processor) -> int | None:
    """Longest sequence in tokens.

    Raises:
        ConfigError: data.max_tokens is more than the model's positions allow.
    """
    wanted, possible = experiment.data.max_tokens, base.family.max_tokens
    if processor.tokenizer is None:
        return None
    if wanted is not None and possible is not None and wanted > possible:
        raise ConfigError(f"data.max_tokens: {wanted} is more than the {possible} positions of {base.reference}; use at most {possible}")
    return wanted or possible


def take(examples: Examples, kept: np.ndarray, parts: Mapping[str, np.ndarray]) -> dict[str, Examples]:
    """The splits as views, without the records that the over-length policy dropped.

    Raises:
        DataError: it dropped a whole split.
    """
    splits = {}
    for name, rows in parts.items():
        here = np.intersect1d(rows, kept)
        if len(rows) and not len(here):
            raise DataError(f"the over-length policy drops all {len(rows)} {name} examples; raise data.max_tokens or use over_length: cut")
        if len(rows):
            splits[name] = examples.subset(here)
    return splits


def batch_widths(experiment: Experiment, lengths: np.ndarray | None, limit: int | None) -> tuple[int, ...] | None:
    """The token widths that batches are padded to."""
    if lengths is None or limit is None:
        return None
    data = experiment.data
    if data.widths != "auto" and data.packing == "none":
        return data.widths
    return choose_widths(lengths, limit, batch_size=data.batch_size)


def packed_widths(experiment: Experiment, lengths: np.ndarray | None) -> tuple[int, ...] | None:
    """The one width of packed training rows; None without packing.

    Raises:
        ConfigError: there is nothing to pack.
    """
    data = experiment.data
    if data.packing == "none":
        return None
    if lengths is None:
        raise ConfigError(f"data.packing: {data.packing} puts texts into one row, but the examples have no tokens; use none")
    return (packed_width(lengths),) if data.widths == "auto" else data.widths
