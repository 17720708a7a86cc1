"""A soup: the average of several runs' weights, as one model (Wortsman et al. 2022). It costs at use what one of them costs.

What is averaged are the tensors that the runs would export, not what they trained: an adapter is merged first, because the product of two
averaged factors is not the average of the products. Tensors that are equal in all of them are passed on as they are, bit for bit.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.api import LoadedModel, Which, export_model, load_model, open_checkpoint
from jaxtune.checkpoint.store import Store
from jaxtune.config.write import to_yaml
from jaxtune.core.errors import ConfigError
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.models.adapters import PARTS
from jaxtune.models.card import model_card
from jaxtune.models.export import write_tensors
from jaxtune.models.hub import Checkpoint
from jaxtune.models.load import open_base
from jaxtune.models.settings import NewModel
from jaxtune.parallel import hosts
from jaxtune.prepare import prepare
from jaxtune.run_folder import RunFolder
from jaxtune.session import Session

SHOWN = 8  # differing tensors that are named
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint, and its share of the average."""

    folder: RunFolder
    experiment: Experiment
    store: Store
    step: int
    weight: float = 0.0

    @classmethod
    def open(cls, name: str) -> Ingredient:
        """RUN, RUN@best, RUN@latest or RUN@step.

        Raises:
            ConfigError: it is no run.
            NoCheckpointError: it has no such checkpoint.
        """
        path, which = split_name(name)
        folder = RunFolder.existing(Path(path))
        experiment = load_experiment(folder.resolved)
        return cls(folder, experiment, *open_checkpoint(experiment, folder, which))

    def __str__(self) -> str:
        return f"{self.folder.path.name}@{self.step}"

    @property
    def meta(self) -> dict[str, Any]:
        return self.store.meta(self.step)

    def load(self) -> LoadedModel:
        return load_model(self.folder.path, self.step)


@dataclass(frozen=True)
class Soup:
    """
    Attributes:
        ingredients: what went in, with weights that sum to 1.
        averaged, equal: tensors that differ between them, and that do not.
        metric: of the average on the validation split, where it was chosen by that.
    """

    folder: Path
    ingredients: tuple[Ingredient, ...]
    averaged: int
    equal: int
    metric: float | None = None


def soup(runs: Sequence[str], out: str | Path, *, weights: Sequence[float] | None = None, greedy: bool = False) -> Soup:
    """Writes a Hugging Face folder with the weighted average of checkpoints of runs that began with the same base.

    Args:
        runs: run folders, each followed by @step where it is not the best checkpoint that is meant.
        weights: one per checkpoint, divided by their sum; default: equal ones.
        greedy: begin with the checkpoint that is best on validation, and add the others, the better ones first, as long as the average gets no
            worse there. Needs the data.

    Raises:
        ConfigError: the runs do not fit together, or the folder exists and is not empty; all problems at once.
        NoCheckpointError: a run has no such checkpoint.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists and is not empty; nothing was written. Choose another folder with -o")
    hosts.start()
    ingredients = weighted([Ingredient.open(name) for name in runs], weights, greedy)
    check(ingredients)
    metric = None
    if greedy:
        ingredients, metric = choose(ingredients)
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".soup-", dir=folder.absolute().parent) as place:
        exports = [export_model(one.folder.path, Path(place) / str(n), one.step, whole=True) for n, one in enumerate(ingredients)]
        tensors, averaged = average([Checkpoint.open(path) for path in exports], [one.weight for one in ingredients])
        ready = Path(place) / "soup"
        ready.mkdir()
        for path in exports[0].iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copyfile(path, ready / path.name)
        write_tensors(ready, tensors)
        (ready / "README.md").write_text(card(folder.name, ingredients), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        ready.replace(folder)
    return Soup(folder, tuple(ingredients), averaged, len(tensors) - averaged, metric)


# -- what goes in -----------------------------------------------------------------------------------------------------------


def split_name(name: str) -> tuple[str, Which]:
    """("runs/a", 120) of "runs/a@120"; an @ that no step follows belongs to the path."""
    path, at, which = name.rpartition("@")
    if not at or not re.fullmatch(r"best|latest|\d+", which):
        return name, "best"
    return path, int(which) if which.isdigit() else "best" if which == "best" else "latest"


def weighted(ingredients: Sequence[Ingredient], weights: Sequence[float] | None, greedy: bool) -> list[Ingredient]:
    """Raises:
    ConfigError: fewer than two, or weights that are not one share for each.
    """
    problems = []
    if len(ingredients) < 2:
        problems.append(f"an average needs two checkpoints or more, found {len(ingredients)}")
    if weights is not None and greedy:
        problems.append("weights: a greedy soup weighs what it takes equally; leave one of the two out")
    if weights is not None and len(weights) != len(ingredients):
        problems.append(f"weights: found {len(weights)} for {len(ingredients)} checkpoints; give one for each")
    if weights is not None and not (all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0):
        problems.append(f"weights: found {', '.join(f'{w:g}' for w in weights)}; expected numbers from 0 up, not all 0")
    if problems:
        raise ConfigError(problems)
    shares = weights or [1.0] * len(ingredients)
    return [replace(one, weight=share / sum(shares)) for one, share in zip(ingredients, shares, strict=True)]


def check(ingredients: Sequence[Ingredient]) -> None:
    """Raises:
    ConfigError: bases, tasks or class names differ between them.
    """
    first, problems = ingredients[0], []
    for other in ingredients[1:]:
        if start(first) != start(other):
            problems.append(
                f"{other} began with another base ({base_words(other)}) than {first} ({base_words(first)}); averages of weights make sense only "
                "where all began with the same ones"
            )
        if first.experiment.task.__class__ is not other.experiment.task.__class__:
            problems.append(
                f"{other} was trained for another task ({type(other.experiment.task).__name__}) than {first} ({type(first.experiment.task).__name__})"
            )
        elif first.meta["names"] != other.meta["names"]:
            problems.append(
                f"{other} has other class names ({', '.join(other.meta['names'])}) than {first} ({', '.join(first.meta['names'])})"
            )
    if problems:
        raise ConfigError(problems)


def start(one: Ingredient) -> Any:
    """What the weights were before training: of a new model its config and seed, otherwise the base's files."""
    base = one.experiment.model.base
    return (base, one.experiment.seed) if isinstance(base, NewModel) else one.meta["base"]


def base_words(one: Ingredient) -> str:
    base = one.experiment.model.base
    return f"new {base.family}, seed {one.experiment.seed}" if isinstance(base, NewModel) else base


# -- the average ------------------------------------------------------------------------------------------------------------


def average(models: Sequence[Checkpoint], weights: Sequence[float]) -> tuple[dict[str, np.ndarray], int]:
    """The tensors of the average, and how many of them differ between the models; one tensor of each model is in memory at a time.

    Raises:
        ConfigError: the models do not have the same tensors, or some that no average can stand for.
    """
    first, problems = models[0], []
    for other in models[1:]:
        names = sorted(first.tensors.keys() | other.tensors.keys())
        shapes = [tuple(str(list(m.tensors[name].shape)) if name in m.tensors else "absent" for m in (first, other)) for name in names]
        problems += [
            f"tensor {name}: {a} in {first.folder.name}, {b} in {other.folder.name}"
            for name, (a, b) in zip(names, shapes, strict=True)
            if a != b
        ]
    if problems:
        more = [f"{len(problems) - SHOWN} more such tensors"] if len(problems) > SHOWN else []
        raise ConfigError(["the models are built differently and have no average", *problems[:SHOWN], *more])
    found: dict[str, np.ndarray] = {}
    averaged = 0
    for name in first.tensors:
        parts = [model.read(name) for model in models]
        if all(part.dtype == parts[0].dtype and part.tobytes() == parts[0].tobytes() for part in parts[1:]):
            found[name] = parts[0]
            continue
        if name.endswith(STATISTICS) or parts[0].dtype.kind in "iub":
            problems.append(f"tensor {name} differs and is no weight: the statistics of an average model are not the average of statistics")
            continue
        found[name] = sum(w * part.astype(np.float64) for w, part in zip(weights, parts, strict=True)).astype(np.float32)  # type: ignore[union-attr]
        averaged += 1
    if problems:
        more = [f"{len(problems) - SHOWN} more such tensors"] if len(problems) > SHOWN else []
        raise ConfigError([*problems[:SHOWN], *more])
    return found, averaged


def choose(ingredients: Sequence[Ingredient]) -> tuple[list[Ingredient], float]:
    """The greedy soup of Wortsman et al. 2022, recipe 1, on the validation split: what it takes, in that order, and its metric.

    Raises:
        ConfigError: there is no validation split that none of them was trained on, or adapters, which have no average.
    """
    first = ingredients[0].experiment
    problems = [
        f"{one} has another data section than {ingredients[0]}: it may have been trained on the rows that would decide"
        for one in ingredients[1:]
        if (one.experiment.data.source, one.experiment.data.transforms, one.experiment.data.split)
        != (first.data.source, first.data.transforms, first.data.split)
        or one.meta["data"] != ingredients[0].meta["data"]
    ]
    loaded = [one.load() for one in ingredients]
    for one, model in zip(ingredients, loaded, strict=True):
        if any(name.rpartition(".")[2] in PARTS for name in model.params):
            problems.append(
                f"{one} has an adapter, and a greedy soup averages the parameters as they trained; leave --greedy out: adapters are merged then"
            )
        elif shapes(model) != shapes(loaded[0]):
            problems.append(
                f"{one} has other parameters than {ingredients[0]} (another head, say); a greedy soup needs the same ones in all"
            )
    prepared = prepare(first)
    if "validation" not in prepared.splits:
        problems.append("greedy: there is no validation split to decide by; leave --greedy out")
    if problems:
        raise ConfigError(problems)
    session = Session.open(prepared, first.mesh.build())
    sign = 1.0 if first.task.higher_is_better else -1.0

    def mean(*arrays: jax.Array) -> jax.Array:
        return jnp.stack([array.astype(jnp.float32) for array in arrays]).mean(0).astype(arrays[0].dtype)

    def metric(chosen: Sequence[int]) -> float:
        params, variables = (jax.tree.map(mean, *(getattr(loaded[n], part) for n in chosen)) for part in ("params", "variables"))
        return float(session.evaluate("validation", loaded[0].blueprint, params, variables).metrics[first.task.best])

    alone = [metric([n]) for n in range(len(loaded))]
    order = sorted(range(len(loaded)), key=lambda n: -sign * alone[n])
    taken, best = order[:1], alone[order[0]]
    for n in order[1:]:
        found = metric([*taken, n])
        if sign * found >= sign * best:
            taken, best = [*taken, n], found
    return [replace(ingredients[n], weight=1 / len(taken)) for n in taken], best


def shapes(model: LoadedModel) -> dict[str, tuple[int, ...]]:
    return {key: value.shape for key, value in {**model.params, **model.variables}.items()}


def card(name: str, ingredients: Sequence[Ingredient]) -> str:
    """The model card: of the first run, and what was averaged."""
    first = ingredients[0]
    base = first.experiment.model.base
    text = model_card(
        open_base(base.model_dump() if isinstance(base, NewModel) else base),
        name=name, labels=first.meta["names"], test={}, configuration=to_yaml(first.experiment),
    )  # fmt: skip
    rows = [f"| {one} | {one.weight:.4g} |" for one in ingredients]
    told = [
        "## Average of",
        "",
        "The weights are averages; the experiment above is that of the first.",
        "",
        "| checkpoint | share |",
        "|---|---|",
        *rows,
        "",
    ]
    return text + "\n" + "\n".join(told)
