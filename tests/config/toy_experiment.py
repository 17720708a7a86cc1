"""A small experiment with the shapes of the real one: kinds in lists, sections in sections, unions, cross-section checks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError

SCHEDULES = {"constant": "toy_experiment:Constant", "cosine": "toy_experiment:Cosine", "chain": "toy_experiment:Chain"}
OPTIMIZERS = {"adamw": "toy_experiment:Adamw", "sgd": "toy_experiment:Sgd", "gone": "toy_experiment_gone:Gone"}
LOSSES = {"cross_entropy": "toy_experiment:CrossEntropy", "focal": "toy_experiment:Focal"}
METRICS = {"accuracy": "toy_experiment:Accuracy", "f1": "toy_experiment:F1"}
RULES = {"early_stopping": "toy_experiment:EarlyStopping"}


class Schedule(Component):
    """When the rate is what."""


class Constant(Schedule):
    """One rate."""

    rate: float = Field(gt=0, description="The learning rate. All along.")


class Cosine(Schedule):
    """Half a cosine."""

    peak: float = Field(gt=0, description="The highest learning rate.")
    warmup: float = Field(0.0, ge=0, description="Climb to the peak.")


class Chain(Schedule):
    """Schedules one after the other."""

    parts: tuple[Annotated[Schedule, OneOf(SCHEDULES)], ...] = Field(min_length=2, description="The schedules.")


class Optimizer(Component):
    schedule: Annotated[Schedule, OneOf(SCHEDULES)] = Field(description="The learning rate over the phase.")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(1.0, description="Largest norm of the gradients.")


class Adamw(Optimizer):
    """Adam with decoupled decay."""

    weight_decay: float = Field(0.0, ge=0, description="Decay per step.")


class Sgd(Optimizer):
    """Plain descent."""

    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last step.")


class Loss(Component):
    """What is made small."""


class CrossEntropy(Loss):
    """-log p."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Probability given to the other classes.")
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = Field("none", description="Weights of the classes.")


class Focal(Loss):
    """-log p, discounted."""

    gamma: float = Field(2.0, ge=0, description="How strongly.")


class Metric(Component):
    """What is measured."""


class Accuracy(Metric):
    """Share of right ones."""


class F1(Metric):
    """Harmonic mean."""

    beta: float = Field(1.0, gt=0, description="Weight of recall.")


class EarlyStopping(Component):
    """Ends when nothing improves."""

    patience: int = Field(3, ge=1, description="Evaluations without improvement.")


class NewModel(Component):
    family: str = Field(description="Name of the family.")
    config: dict[str, float | int | str | bool] = Field(default_factory=dict, description="What differs from the defaults.")


class Model(Component):
    """The `model:` section."""

    base: str | NewModel = Field(description="Hub id or folder. Or a new one.")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Precision.")
    scan_layers: Literal["auto"] | bool = Field("auto", description="Loop over layers.")


class Data(Component):
    """The `data:` section."""

    path: str | dict[str, str] = Field(description="Where the data are.")
    max_tokens: int | None = Field(None, ge=2, description="Longest text.")
    batch_size: int = Field(32, ge=1, description="Examples per step.")
    shuffle: bool = Field(True, description="Another order in every epoch.")

    @model_validator(mode="after")
    def _fits(self) -> Data:
        problems = []
        if self.batch_size == 13:
            problems.append("batch_size: 13 is an unlucky number")
        if self.max_tokens == 13:
            problems.append("max_tokens: 13 as well")
        if problems:
            raise ConfigError(problems)
        return self


class Phase(Component):
    """One entry of `phases:`."""

    train: tuple[str, ...] = Field(("*",), min_length=1, description="Patterns that train.")
    epochs: float | None = Field(None, gt=0, description="Passes over the data.")
    optimizer: Annotated[Optimizer, OneOf(OPTIMIZERS)] = Field(description="Optimizer by kind.")
    stopping: tuple[Annotated[EarlyStopping, OneOf(RULES)], ...] = Field((), description="Rules that end it.")


class Task(Component):
    """The `task:` section."""

    text: str = Field("text", description="Column with the text.")
    loss: Annotated[Loss, OneOf(LOSSES)] = Field(CrossEntropy(label_smoothing=0.1), description="The loss.")
    metrics: tuple[Annotated[Metric, OneOf(METRICS)], ...] = Field((Accuracy(),), description="The metrics.")


class Toy(Component):
    """An experiment."""

    name: str = Field(description="Of the run folder.")
    seed: int = Field(0, ge=0, description="Of all that is random.")
    model: Model = Field(description="The base model.")
    task: Task = Field(default_factory=Task, description="What is predicted.")
    data: Data = Field(description="The examples.")
    phases: tuple[Phase, ...] = Field(min_length=1, description="What trains.")

    @model_validator(mode="after")
    def _sections_fit(self) -> Toy:
        problems = []
        if self.seed == 13:
            problems.append("seed: 13 is an unlucky number")
        if self.data.batch_size == 7:
            problems.append("data.batch_size: 7 does not fit phases.0.train")
        if self.name == "unlucky":
            problems.append("this experiment is unlucky as a whole")
        if problems:
            raise ConfigError(problems)
        return self


def blocks(name: str) -> list[str]:
    """The paragraphs of a file beside this one, without the first, which explains them."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return text.strip("\n").split("\n\n")[1:]


GOOD = """\
name: quick
seed: 1
model: {base: some/model, dtype: float32}
task:
  loss: {kind: cross_entropy, label_smoothing: 0.2}
  metrics: [accuracy, {kind: f1, beta: 2}]
data:
  path: reviews.csv
  max_tokens: 128
phases:
  - train: ["head.*"]
    epochs: 1
    optimizer: {kind: adamw, schedule: {kind: constant, rate: 5e-4}}
  - epochs: 2
    optimizer:
      kind: adamw
      weight_decay: 0.01
      schedule: {kind: cosine, peak: 1e-4}
    stopping: [early_stopping]
"""
