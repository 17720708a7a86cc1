"""Finished runs and models from Python: load, evaluate, predict, export. The commands of the same names call these.

The objects are those of a training run, so nothing is measured here that the run would measure otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from jaxtune.adjust import overridden
from jaxtune.checkpoint.store import Store
from jaxtune.core.component import OneOf, nearest
from jaxtune.core.errors import ConfigError, NoCheckpointError
from jaxtune.data import SOURCES
from jaxtune.data.examples import Examples
from jaxtune.data.feed import Feed
from jaxtune.data.pipeline import batches
from jaxtune.data.plan import Plan, choose_widths
from jaxtune.data.processor import Limits
from jaxtune.data.scan import Cleaned, apply
from jaxtune.data.sources.base import Records, Source
from jaxtune.data.sources.in_memory import InMemory
from jaxtune.evaluation.evaluate import Evaluated, Predictions
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.model_session import ModelSession
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.peft import Peft
from jaxtune.parallel import hosts
from jaxtune.prepare import open_subject, prepare
from jaxtune.reference import add_read
from jaxtune.run import Result, Watch, export_run, ignore, run
from jaxtune.run_folder import RunFolder
from jaxtune.session import OnDevice, Session

Which = Literal["best", "latest"] | int
SOURCE_OF_SUFFIX = {".csv": "csv", ".tsv": "csv", ".jsonl": "json_lines", ".ndjson": "json_lines", ".parquet": "parquet"}


@dataclass(frozen=True)
class LoadedModel:
    """A run's model at one of its checkpoints."""

    session: ModelSession
    step: int
    phase: int
    blueprint: Blueprint
    params: Flat
    variables: Flat

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.session.subject.names

    @property
    def module(self) -> nnx.Module:
        """The model as an ordinary NNX module: `module.head(module(batch))` gives logits."""
        return self.blueprint.build(self.params, self.variables)


def load_model(run: str | Path, checkpoint: Which = "best") -> LoadedModel:
    """Loads a run's model; the training data are not needed.

    Raises:
        ConfigError: it is no run, or its base model changed.
        NoCheckpointError: it has no such checkpoint.
    """
    folder = RunFolder.existing(Path(run))
    hosts.start()
    experiment = load_experiment(folder.resolved)
    store, step = open_checkpoint(experiment, folder, checkpoint)
    names = tuple(store.meta(step)["names"])
    return restore(ModelSession.open(open_subject(experiment, names), experiment.mesh.build()), store, step)


def evaluate(run: str | Path, split: str = "test", checkpoint: Which = "best") -> Evaluated:
    """Metrics and predictions of a run's checkpoint on one of its splits.

    Raises:
        ConfigError: there is no such split, or data or base changed since.
    """
    folder = RunFolder.existing(Path(run))
    hosts.start()
    experiment = load_experiment(folder.resolved)
    prepared = prepare(experiment)
    if split not in prepared.splits:
        raise ConfigError(f'split "{split}" does not exist{nearest(split, list(prepared.splits))} (splits: {", ".join(prepared.splits)})')
    session = Session.open(prepared, experiment.mesh.build())
    add_read(session, training=False)
    store, step = open_checkpoint(experiment, folder, checkpoint)
    loaded = restore(session, store, step)
    return session.evaluate(split, loaded.blueprint, loaded.params, loaded.variables, keep=True)


def predict(model: LoadedModel | str | Path, records: Source | Sequence[Mapping[str, Any]] | Sequence[str] | str | Path) -> Predictions:
    """Predictions for new data; `ids` are row numbers of the records, after the experiment's transforms.

    Args:
        model: a loaded model, or a run folder.
        records: a source, a path to data of the same kind, a list of records (mappings with the task's columns), or a list of texts.

    Raises:
        ConfigError: the data lack a column that the task reads.
        DataError: a record cannot be encoded.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    return predict_records(loaded, open_records(loaded, records))


def export_model(run: str | Path, folder: str | Path, checkpoint: Which = "best", *, whole: bool = False) -> Path:
    """Writes a Hugging Face folder of a run's checkpoint; `whole` merges an adapter whatever `model.adapter.export` says.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    loaded = load_model(run, checkpoint)
    result = RunFolder.existing(Path(run)).result
    numbers = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
    return export_run(loaded.session, Path(folder), loaded.params | loaded.variables, numbers, loaded.phase, whole=whole)


def branch(
    run_folder: str | Path, changes: Sequence[str], *, name: str | None = None, watch: Watch = ignore
) -> tuple[Result, dict[str, Any]]:
    """A new run beside another one, from its best checkpoint, with `key=value` changes; the result and where it comes from.

    The checkpoint is exported as a Hugging Face folder and is the new run's base, so head, length, data and phases may all be others; the
    head is kept as long as the labels are the same. lineage.json of the new run names the parent, its step and the changes.

    Raises:
        ConfigError: it is no run, or the changes do not fit.
        NoCheckpointError: the run has no checkpoint.
    """
    parent = RunFolder.existing(Path(run_folder))
    experiment = load_experiment(parent.resolved)
    if any(word.startswith("model.base=") for word in changes):
        raise ConfigError("model.base: the base of a branch is the run's best checkpoint; for another base start a run of its own")
    _, step = open_checkpoint(experiment, parent, "best")
    after = overridden(experiment, changes)
    if isinstance(after.model.adapter, Peft) and after.model.adapter == experiment.model.adapter:
        raise ConfigError(
            "model.adapter: the run's adapter is merged into the branch's base; say model.adapter=null, or which one comes next"
        )
    base = parent.path / "branches" / f"step-{step}"
    if not (base / "config.json").is_file():
        export_model(parent.path, base, whole=True)
    after = after.model_copy(update={"model": after.model.model_copy(update={"base": str(base)})})
    numbers = json.loads(parent.result.read_text(encoding="utf-8")) if parent.result.is_file() else {}
    split = "test" if numbers.get("test") else "validation"
    lineage = {"run": str(parent.path), "step": step, "changes": list(changes), "split": split, "parent_numbers": numbers.get(split, {})}
    result = run(after, runs_dir=parent.path.parent, name=name or f"{parent.path.name}-branch", watch=watch, lineage=lineage)
    return result, lineage


# -- inside -------------------------------------------------------------------------------------------------------------


def open_checkpoint(experiment: Experiment, folder: RunFolder, which: Which) -> tuple[Store, int]:
    store = Store(folder.checkpoints, best="max" if experiment.task.higher_is_better else "min", read_only=True)
    steps = store.steps()
    found = (store.best_step or store.latest_step) if which == "best" else store.latest_step if which == "latest" else which
    if found is None or found not in steps:
        raise NoCheckpointError(f"{folder.path} has no checkpoint {which} (there are: {', '.join(map(str, steps)) or 'none'})")
    return store, found


def restore(session: ModelSession, store: Store, step: int) -> LoadedModel:
    blueprint, params, variables = session.restore_params(store, step)
    return LoadedModel(session, step, store.meta(step)["progress"]["phase"], blueprint, params, variables)


def open_records(loaded: LoadedModel, records: Any) -> Records:
    """The new data as records, without transforms."""
    task = loaded.session.subject.task
    if isinstance(records, Source):
        return records.open()
    if isinstance(records, str | Path):
        return source_for(loaded.session.subject.experiment, str(records)).open()
    listed = list(records)
    if listed and isinstance(listed[0], str):
        listed = [task.from_text(text) for text in listed]
    return InMemory(records=tuple(listed)).open()


def source_for(experiment: Experiment, path: str) -> Source:
    """The experiment's kind of source at another path; a file of another kind by its suffix."""
    own = experiment.data.source
    choice = OneOf(SOURCES)
    kind = SOURCE_OF_SUFFIX.get(Path(path).suffix.lower())
    if kind is not None and kind != choice.kind(own):
        return choice.load({"kind": kind, "path": path})
    if "path" not in type(own).model_fields:
        raise ConfigError(f"{path}: the run's data were {choice.kind(own)}, which has no path; give a .csv, .jsonl or .parquet file")
    return own.model_copy(update={"path": path})


def predict_records(loaded: LoadedModel, records: Records) -> Predictions:
    """Probabilities of every record that the transforms leave and the over-length policy keeps."""
    subject, cleaned = loaded.session.subject, unlabelled(loaded, records)
    data, task = subject.experiment.data, subject.task
    encoded = task.encode(cleaned, subject.names, subject.processor, Limits(subject.limit, data.over_length, None, ""))
    examples = encoded.examples.subset(encoded.kept)
    found = infer(loaded, examples)
    return replace(found, ids=cleaned.rows[found.ids])


def unlabelled(loaded: LoadedModel, records: Records) -> Cleaned:
    """The records after the experiment's transforms, without what the task is to find out.

    Raises:
        ConfigError: a column that the task reads is missing.
    """
    subject = loaded.session.subject
    data, task = subject.experiment.data, subject.task
    fields = records.fields
    for transform in data.transforms:
        fields = transform.fields_after(fields)
    missing = [name for name in task.content if name not in (*fields, *task.answers)]
    if missing:
        raise ConfigError(
            [f'no column "{name}" in the data{nearest(name, list(fields))} (columns: {", ".join(fields)})' for name in missing]
        )
    kept = (
        [row for row in range(len(records)) if apply(data.transforms, records[row]) is not None] if data.transforms else range(len(records))
    )
    return Cleaned(records, data.transforms, np.array(kept, np.int64), tuple(name for name in fields if name not in task.answers))


def infer(loaded: LoadedModel, examples: Examples) -> Predictions:
    session = loaded.session
    data = session.subject.experiment.data
    size = data.evaluation_batch_size or data.batch_size or 32
    ways = session.placement.batch_ways
    widths = (
        None
        if examples.lengths is None or session.subject.row_limit is None
        else choose_widths(examples.lengths, session.subject.row_limit, batch_size=size)
    )
    plan = Plan(
        rows=len(examples), lengths=examples.lengths, widths=widths, batch_size=-(-size // ways) * ways, shuffle=False, divisor=ways
    )  # fmt: skip
    source = batches(examples, plan, stop=plan.steps())

    def place(batch: Any) -> OnDevice:
        return OnDevice(session.placement.put_batch(batch.arrays), batch.examples, batch.tokens, batch.arrays["example_id"])

    with Feed(source, place) as feed:
        return session.evaluator(loaded.blueprint).infer(loaded.params, loaded.variables, feed)
