"""What the trials of a search share in memory: prepared data, base parameters, compiled programs, evaluators.

A trial's experiment decides by its own settings what it may share, so nothing here knows what is being searched; a batch size, a dropout
rate or another optimizer each costs exactly what differs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune.data.settings import Data
from jaxtune.experiment import Experiment
from jaxtune.models.blueprint import Flat
from jaxtune.prepare import Prepared, batch_widths, prepare
from jaxtune.reference import add_read
from jaxtune.session import Session
from jaxtune.training.stage import Programs

PROGRAMS, SESSIONS, PREPARED, BASES = 16, 8, 2, 1  # how many of each are kept; the last two hold much memory


class Kept[Key, Value](OrderedDict[Key, Value]):
    """The most recently used items, latest last; `lost` is told of each that goes."""

    def __init__(self, most: int, lost: Callable[[Value], None] = lambda value: None):
        super().__init__()
        self.most, self.lost = most, lost

    def get(self, key: Key, default: Any = None) -> Any:
        if key in self:
            self.move_to_end(key)
            return self[key]
        return default

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.most:
            self.lost(self.popitem(last=False)[1])


class Workbench:
    """Makes sessions, one for each trial."""

    def __init__(self) -> None:
        self.prepared: Kept[Any, Prepared] = Kept(PREPARED)
        self.sessions: Kept[Any, Session] = Kept(SESSIONS)
        self.evaluators: Kept[Any, dict[Any, Any]] = Kept(SESSIONS)
        self.programs: Kept[Any, Programs] = Kept(PROGRAMS, self.forget)
        self.bases: Kept[Any, tuple[Flat, Flat]] = Kept(BASES)
        self.forgotten = 0

    @property
    def compilations(self) -> int:
        """Training steps compiled so far: one for each structure and batch shape that came up."""
        return self.forgotten + sum(programs.step.compilations for programs in self.programs.values())

    def session(self, experiment: Experiment) -> Session:
        """A session of this experiment, with everything of earlier ones that fits it.

        Raises:
            ConfigError, ModelError, DataError: as `prepare` and `Session.open`.
        """
        prepared = self.prepare(experiment)
        model = (shape_of(experiment), repr(prepared.task), prepared.names)
        patterns = tuple(phase.train for phase in experiment.phases)
        known = self.sessions.get((model, patterns))
        if known is None:
            known = self.sessions[model, patterns] = Session.open(prepared, experiment.mesh.build())
        evaluators = self.evaluators.get(model)
        if evaluators is None:
            evaluators = self.evaluators[model] = known.evaluators
        session = replace(known, subject=prepared, given=experiment, programs=self.programs, evaluators=evaluators)
        add_read(session)
        return session

    def prepare(self, experiment: Experiment) -> Prepared:
        """The experiment's data; what concerns batches alone is made anew, the encoded examples are not."""
        key = (shape_of(experiment), repr(experiment.task), unbatched(experiment.data))
        known = self.prepared.get(key)
        if known is None:
            known = self.prepared[key] = prepare(experiment)
            return known
        widths = batch_widths(experiment, known.splits["train"].lengths, known.row_limit)
        return replace(known, experiment=experiment, facts={**known.facts, "widths": widths})

    def start(self, session: Session) -> tuple[Flat, Flat]:
        """(parameters, variables) of the base for a training to use up: copies, because every step is given the arrays' memory."""
        experiment = session.prepared.experiment
        seed = experiment.seed if session.loading.fresh else None
        key = (shape_of(experiment), session.prepared.names, frozenset().union(*session.trained), seed)
        if key not in self.bases:
            self.bases.clear()  # before the next one is loaded, so that there are never two
            self.bases[key] = session.load_base()
        params, variables = self.bases[key]
        return copies(params), copies(variables)

    def forget(self, programs: Programs) -> None:
        self.forgotten += programs.step.compilations


def copies(flat: Flat) -> Flat:
    return {key: jax.device_put(jnp.copy(value), value.sharding) for key, value in flat.items()}


def shape_of(experiment: Experiment) -> tuple[Any, ...]:
    """What decides the module and where it lives; dropout rates do not."""
    return (experiment.model.model_copy(update={"dropout": "none"}), experiment.mesh)


def unbatched(data: Data) -> Data:
    """The data settings without those that `prepare` does not read."""
    return data.model_copy(update={"batch_size": None, "batch_tokens": None, "evaluation_batch_size": None, "workers": 0, "augment": ()})
