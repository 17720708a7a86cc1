"""An experiment: the whole YAML as one frozen object. Sections check themselves; what stands here concerns two sections at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from jaxtune.checkpoint.settings import Checkpoint
from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.data.augment import DeviceAugment, HostAugment
from jaxtune.data.settings import Data
from jaxtune.evaluation.settings import Evaluation
from jaxtune.models.settings import Model
from jaxtune.parallel.mesh import Mesh
from jaxtune.tasks import TASKS
from jaxtune.tasks.base import Task
from jaxtune.tracking import TRACKERS
from jaxtune.tracking.base import Tracker
from jaxtune.training.phase import Phase


class Experiment(Component):
    """Everything a run is made of."""

    name: str = Field(description="name of the run folder")
    seed: int = Field(default=0, ge=0, description="of everything random in training; the split has a seed of its own")
    model: Model = Field(description="the base model")
    task: Annotated[Task, OneOf(TASKS)] = Field(description="what is predicted from what")
    data: Data = Field(description="examples, splits, batches")
    phases: tuple[Phase, ...] = Field(min_length=1, description="what trains, one after the other")
    mesh: Mesh = Field(default_factory=Mesh, description="how devices are used")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="when validation happens")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="what is saved when")
    tracking: tuple[Annotated[Tracker, OneOf(TRACKERS)], ...] = Field(default=(), description="where numbers go besides metrics.jsonl")

    @model_validator(mode="after")
    def sections_fit(self) -> Experiment:
        problems = []
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._\-]*", self.name):
            problems.append(f'name: "{self.name}" is no folder name; use letters, digits, ".", "_" and "-"')
        size = self.data.batch_size
        for number, phase in enumerate(self.phases):
            if size is not None and size % phase.accumulation:
                problems.append(f"phases.{number}.accumulation: {phase.accumulation} parts do not divide data.batch_size {size} evenly")
            for place, rule in enumerate(phase.stopping):
                problems += [
                    f"phases.{number}.{problem}".replace("stopping", f"stopping.{place}", 1)
                    for problem in rule.problems(self.task.metric_names)
                ]
        if self.task.domain == "image":
            problems += [
                f"data.{name}: has no meaning for images; leave it out"
                for name in ("max_tokens", "batch_tokens")
                if getattr(self.data, name) is not None
            ]
        if self.evaluation.answers is not None and not self.task.generates:
            problems.append(f"evaluation.answers: {type(self.task).__name__} writes nothing; leave it out")
        if self.data.packing != "none" and not self.task.packs:
            problems.append(
                f"data.packing: an example of {type(self.task).__name__} has a row for itself; leave it out (plain text, answers and chats can be packed)"
            )
        wrong = HostAugment if self.task.domain == "image" else DeviceAugment
        problems += [
            f"data.augment.{number}: {type(augment).__name__} does not work on {self.task.domain}s; leave it out"
            for number, augment in enumerate(self.data.augment)
            if isinstance(augment, wrong)
        ]
        if problems:
            raise ConfigError(problems)
        return self


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file, with dotted `key=value` overrides.

    Raises:
        ConfigError: every problem of the file and the overrides, each with its line.
    """
    from jaxtune.config.read import read

    experiment: Any = read(Path(path), overrides, Experiment)
    return experiment
