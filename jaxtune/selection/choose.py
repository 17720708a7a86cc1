"""Which base model for these data: every candidate's features scored on the same training rows and folds, its costs beside the score.

Nothing is fine-tuned, and validation and test rows decide nothing: the ranking is a hint of where training will end, bought for one
pass over some training rows. What it cannot tell apart, it says.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from jaxtune.config.write import to_yaml
from jaxtune.core.errors import ConfigError, JaxtuneError
from jaxtune.core.folders import cache_folder
from jaxtune.experiment import Experiment
from jaxtune.models.load import Plan as LoadPlan
from jaxtune.parallel import hosts
from jaxtune.prepare import Prepared, load_base, prepare
from jaxtune.run_folder import RunFolder, runs_folder
from jaxtune.selection.candidates import Candidate, Filters, Refused, check_candidates
from jaxtune.selection.catalogue import Catalogue, load_catalogue
from jaxtune.selection.choose_page import write_chosen
from jaxtune.selection.chosen import MEASURES, Assessed, Chosen, rank
from jaxtune.selection.cost import measure_cost, measure_tokenizer, parameter_count
from jaxtune.selection.embeddings import HeadInputs, embed
from jaxtune.selection.transferability import Labelled, measure_features, usual_measure
from jaxtune.session import Session
from jaxtune.tasks.labelled import labelled

_LOG = logging.getLogger(__name__)
Tell = Callable[[str], None]  # is given a line when something is done


def ignore(line: str) -> None:
    """A listener that does not listen."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on each candidate.

    Attributes:
        rows: training rows at most; a sample that keeps the labels' shares where there are more.
        folds, repeats: of the cross-validation.
        steps: training steps that are timed; 0 leaves all costs but the parameters out.
        seed: of the sample and the folds.
    """

    rows: int = 2000
    folds: int = 5
    repeats: int = 2
    steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rows": 10, "folds": 2, "repeats": 1, "steps": 0, "seed": 0}
        problems = [
            f"{name}: found {getattr(self, name)}; expected at least {low}" for name, low in least.items() if getattr(self, name) < low
        ]
        if problems:
            raise ConfigError(problems)


def choose(
    experiment: Experiment,
    candidates: Sequence[Candidate],
    *,
    filters: Filters | None = None,
    effort: Effort | None = None,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    cache: Path | None = None,
    tell: Tell = ignore,
) -> Chosen:
    """Ranks candidates as bases of an experiment and writes `<runs_dir>/<experiment's name>-choose/`.

    A candidate that does not work (missing, of another domain, too large for the device) is recorded with the reason and stops no other.

    Args:
        name: of the folder; numbered when it exists.
        cache: folder of stored embeddings; default: jaxtune's.
        tell: is given a line whenever a candidate is done.

    Raises:
        ConfigError: no candidates, none that could be compared (with every reason), or several processes.
    """
    place, listed = runs_folder(runs_dir), check_candidates(candidates)
    comparison = Comparison(experiment, filters or Filters(), effort or Effort(), cache or cache_folder("embeddings"))
    hosts.start()
    if jax.process_count() > 1:
        raise ConfigError("choose works in one process; run it on a single host")
    assessed: list[Assessed] = []
    refused: list[Refused] = []
    for number, candidate in enumerate(listed, 1):
        found = comparison.try_one(candidate)
        if isinstance(found, Refused):
            refused.append(found)
            said = " ".join(f"{'left out' if found.why == 'filtered' else 'failed'}: {found.reason}".split())
        else:
            assessed.append(found)
            said = f"{MEASURES[comparison.measure]} {found.score.probe.mean:.3f}"
        tell(f"{number} of {len(listed)}  {candidate.name}: {said}")
        gc.collect()  # a candidate's parameters are gone before the next one's are loaded
    if not assessed:
        raise ConfigError(["no candidate could be compared", *(f"{each.candidate.name}: {each.reason}" for each in refused)])
    rows = comparison.rows
    assert rows is not None
    chosen = Chosen(
        ranked=rank(assessed),
        refused=tuple(refused),
        measure=rows.labelled.measure,
        rows=len(rows.records),
        training_rows=rows.of,
        folds=comparison.effort.folds,
        repeats=comparison.effort.repeats,
        notes=tuple(comparison.notes),
    )
    with RunFolder.create(place, name or f"{experiment.name}-choose") as folder:
        folder.write("experiment.yaml", to_yaml(experiment))
        write_chosen(folder, chosen, comparison.catalogue)
        return replace(chosen, folder=folder.path)


@dataclass(frozen=True)
class Rows:
    """The training records that every candidate is scored on; `of` is how many there are."""

    records: np.ndarray
    labelled: Labelled
    of: int

    @classmethod
    def of_prepared(cls, prepared: Prepared, effort: Effort) -> Rows:
        task, examples = labelled(prepared.task, "choose"), prepared.splits["train"]
        targets = examples.column("label") if task.problem == "single_label" else examples.column("target").astype(np.float64)
        keys = [prepared.scanned.keys[i] for i in examples.ids]
        classes = prepared.classes
        everything = Labelled(task.problem, np.asarray(targets), keys, classes, usual_measure(task.problem, task.best))
        sample = everything.sample(effort.rows, effort.seed)
        return cls(examples.ids[sample], everything.take(sample), len(examples))


@dataclass
class Comparison:
    """Assesses one candidate after the other on the same rows."""

    experiment: Experiment
    filters: Filters
    effort: Effort
    cache: Path
    catalogue: Catalogue = field(default_factory=load_catalogue)
    rows: Rows | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        data = self.experiment.data
        if data.over_length == "drop":  # every tokenizer would drop other rows
            self.experiment = self.experiment.model_copy(update={"data": data.model_copy(update={"over_length": "cut"})})
            self.notes.append(
                "texts that are too long are cut here, not dropped as in the experiment, so that all candidates see the same rows"
            )

    @property
    def measure(self) -> str:
        task = labelled(self.experiment.task, "choose")
        return usual_measure(task.problem, task.best)

    def try_one(self, candidate: Candidate) -> Assessed | Refused:
        """The candidate's scores and costs, or why there are none."""
        known = self.catalogue.find(candidate.base)
        if reason := self.filters.known(candidate, known):
            return Refused(candidate, "filtered", reason)
        try:
            base = load_base(candidate.experiment(self.experiment))
            if reason := self.filters.opened(candidate, base):
                return Refused(candidate, "filtered", reason)
            return self.assess(candidate)
        except JaxtuneError as error:
            return Refused(candidate, "failed", str(error))
        except Exception as error:  # one candidate's strange checkpoint must not cost the others their result
            _LOG.exception("%s failed in a way that was not foreseen", candidate.name)
            return Refused(candidate, "failed", f"{type(error).__name__}: {error}")

    def assess(self, candidate: Candidate) -> Assessed:
        prepared = prepare(candidate.experiment(self.experiment))
        if self.rows is None:
            self.rows = Rows.of_prepared(prepared, self.effort)
        session, notes = open_session(prepared)
        inputs = HeadInputs.of(session)
        if candidate.fresh:
            everything = frozenset(session.blueprint.params) | frozenset(session.blueprint.others)
            session.loading = LoadPlan({}, everything, session.loading.ignored)
        base, effort = prepared.base, self.effort
        params, variables = session.load_base()
        found = embed(session, inputs, self.rows.records, params, variables, fresh=candidate.fresh, cache=self.cache)
        readings = {
            reading: measure_features(values, self.rows.labelled, folds=effort.folds, repeats=effort.repeats, seed=effort.seed)
            for reading, values in found.readings.items()
        }
        return Assessed(
            candidate=candidate,
            model_type=base.family.model_type,
            licence=base.licence,
            max_tokens=base.family.max_tokens,
            parameters=parameter_count(session),
            readings=readings,
            cost=measure_cost(session, params, variables, effort.steps) if effort.steps else None,
            tokenizer=measure_tokenizer(prepared, self.rows.records),
            embedding_seconds=found.seconds,
            from_cache=found.from_cache,
            notes=notes,
        )


def open_session(prepared: Prepared) -> tuple[Session, tuple[str, ...]]:
    """A session; where the patterns of the phases name layers that this model does not have, one that trains everything, and a note.

    Raises:
        ModelError: checkpoint and model do not fit.
    """
    placement = prepared.experiment.mesh.build()
    try:
        return Session.open(prepared, placement), ()
    except ConfigError as error:
        if not all(problem.startswith("phases.") for problem in error.problems):
            raise
        phases = tuple(phase.model_copy(update={"train": ("*",)}) for phase in prepared.experiment.phases)
        experiment = prepared.experiment.model_copy(update={"phases": phases})
        note = f"costs are for training everything, because the experiment's patterns do not fit this model: {error.problems[0]}"
        return Session.open(replace(prepared, experiment=experiment), placement), (note,)
