"""No dead options: every field of every component is read somewhere, and every option of an experiment changes what a tiny run is made of."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import tiny_run

from jaxtune.checkpoint.settings import Checkpoint
from jaxtune.checkpoint.store import Store
from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.settings import Data
from jaxtune.data.split import Stratified
from jaxtune.evaluation.settings import Evaluation
from jaxtune.experiment import Experiment
from jaxtune.losses.cross_entropy import CrossEntropy
from jaxtune.models.settings import Model, NewModel, Rates
from jaxtune.parallel import hosts
from jaxtune.parallel.mesh import Mesh
from jaxtune.prepare import prepare
from jaxtune.run import run
from jaxtune.selection.catalogue import KnownModel
from jaxtune.session import Session
from jaxtune.tasks.text_classification import TextClassification
from jaxtune.training.optimizers.adam import AdamW
from jaxtune.training.phase import Phase
from jaxtune.training.schedules.shapes import Linear
from jaxtune.training.stage import Stage

PACKAGE = Path(__file__).resolve().parents[1] / "jaxtune"

# -- every field is read ----------------------------------------------------------------------------------------------------


def components() -> list[type[Component]]:
    """Every component of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if not name.endswith("__main__"):
            importlib.import_module(name)
    found, waiting = [], [Component]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            if cls.__module__.startswith("jaxtune."):
                found.append(cls)
                waiting.append(cls)
    return sorted(set(found), key=lambda cls: f"{cls.__module__}.{cls.__name__}")


@functools.cache
def reads() -> frozenset[tuple[str, str]]:
    """(file or "", name): attributes of `self` by file, attributes of anything else anywhere, and names read as text.

    What validators look at is left out: an option that is only checked has no effect.
    """
    found: set[tuple[str, str]] = set()

    def walk(node: ast.AST, file: str) -> None:
        if isinstance(node, ast.FunctionDef) and any("validator" in ast.unparse(mark) for mark in node.decorator_list):
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            mine = isinstance(node.value, ast.Name) and node.value.id == "self"
            found.add((file if mine else "", node.attr))
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            found.add(("", str(node.slice.value)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and isinstance(node.args[1], ast.Constant):
            found.add(("", str(node.args[1].value)))
        for child in ast.iter_child_nodes(node):
            walk(child, file)

    for path in PACKAGE.rglob("*.py"):
        walk(ast.parse(path.read_text(encoding="utf-8")), path.as_posix())
    return frozenset(found)


def file_of(cls: type) -> str:
    return PACKAGE.parent.joinpath(*cls.__module__.split(".")).with_suffix(".py").as_posix()


HANDED_ON = {Rates, KnownModel}  # dumped as a whole: into DropoutRates, into choose.json


def is_read(cls: type[Component], name: str) -> bool:
    """By a method of the class, of one it inherits from or of one that inherits from it, or by anybody who holds one."""
    if cls in HANDED_ON:
        return True
    family = [c for c in components() if issubclass(c, cls) or issubclass(cls, c)]
    return ("", name) in reads() or any((file_of(c), name) in reads() for c in family)


def test_every_field_of_every_component_is_read() -> None:
    idle = [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in components()
        for name in cls.model_fields
        if name in cls.__annotations__ and not is_read(cls, name)
    ]
    assert len(components()) > 60
    assert not idle, f"options that nothing reads: {', '.join(idle)}"


def test_an_idle_field_would_be_noticed() -> None:
    assert not is_read(AdamW, "an_option_that_nobody_reads") and is_read(AdamW, "beta1") and is_read(Phase, "accumulation")


# -- every option changes something -----------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "name": "tiny",
    "model": {"base": "model", "dtype": "float32"},
    "task": {"kind": "text_classification", "metrics": ["accuracy"]},
    "data": {
        "source": {"kind": "text_folder", "path": "texts"},
        "split": {"kind": "stratified", "validation": 0.2, "test": 0.2},
        "max_tokens": 12,
        "widths": [8, 12],
        "batch_size": 8,
    },
    "phases": [{"train": ["layers.*", "head.*"], "steps": 3, "optimizer": {"kind": "adamw", "schedule": {"kind": "linear", "peak": 0.01}}}],
}


class Tiny:
    """What a run of an experiment is a function of: its data, its program, the scalars given to that, and the state it starts from."""

    def __init__(self, settings: dict[str, Any]):
        self.experiment = Experiment.model_validate(settings)

    @functools.cached_property
    def session(self) -> Session:
        return Session.open(prepare(self.experiment), self.experiment.mesh.build())

    @functools.cached_property
    def stage(self) -> Stage:
        return self.session.start_phase(0, *self.session.load_base(), None)

    @functools.cached_property
    def data(self) -> str:
        session = self.session
        with session.feed("train", session.plan(0), 0, 6, training=True) as feed:
            batches = [tiny.host(batch.arrays) for batch in feed]
        return as_text([batches, session.prepared.names, {name: part.ids for name, part in session.prepared.splits.items()}])

    @functools.cached_property
    def evaluation_data(self) -> str:
        plan = self.session.prepared.plan("validation", divisor=8, training=False)
        with self.session.feed("validation", plan, stop=plan.steps()) as feed:
            return as_text([tiny.host(batch.arrays) for batch in feed])

    @functools.cached_property
    def program(self) -> str:
        session, stage = self.session, self.stage
        with session.feed("train", session.plan(0), 0, 1, training=True) as feed:
            batch = next(feed).arrays
        text = str(jax.make_jaxpr(stage.step.function)(stage.state, batch, stage.controls(0, 1.0)))
        return re.sub(r"0x[0-9a-f]+", "", text)

    @functools.cached_property
    def controls(self) -> str:
        return as_text([self.stage.controls(step, 1.0) for step in range(3)])

    @functools.cached_property
    def state(self) -> str:
        return as_text(tiny.host(self.stage.state))

    @functools.cached_property
    def steps(self) -> str:
        return str(self.session.steps(0))

    @functools.cached_property
    def goal(self) -> str:
        task = self.session.prepared.task
        return f"{task.best} {task.higher_is_better} {list(task.metric_names)}"

    @functools.cached_property
    def shardings(self) -> str:
        return str([(key, value.sharding.spec) for key, value in self.stage.state.params.items()])


def as_text(tree: Any) -> str:
    return str([(jax.tree_util.keystr(path), np.asarray(leaf).tolist()) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("options")
    tiny_run.write_model(folder / "model")
    tiny_run.write_model(folder / "other", "bert_eight_heads")
    tiny_run.write_corpus(folder / "texts", each=20)
    tiny_run.write_corpus(folder / "more", each=21)
    for part in ("texts", "more"):
        (folder / part / "sport" / "long.md").write_text("team game play " * 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JAXTUNE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def base(home: Path) -> Tiny:
    return Tiny(BASE)


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The base experiment with dotted settings changed; None takes one away."""
    settings = copy.deepcopy(BASE)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place: Any = settings
        for part in path:
            if isinstance(place, list):
                place = place[int(part)]
            else:
                place = place.setdefault(part, {})
        place.pop(last) if value is None else place.__setitem__(last, value)
    return settings


SPLIT, LOSS, OPTIMIZER = "data.split", "task.loss", "phases.0.optimizer"
# (what is set, what it changes); the first setting is the option that is meant
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "data"),
    ({"seed": 1}, "state"),
    ({"model.base": "other"}, "state"),
    ({"model.dtype": "bfloat16"}, "program"),
    ({"model.dropout": "none"}, "program"),
    ({"model.dropout.hidden": 0.3}, "controls"),
    ({"model.dropout.attention": 0.3}, "controls"),
    ({"model.dropout.head": 0.3}, "controls"),
    ({"model.head": "new", "task.labels": ["calm", "glad", "sad"], "data.source": {"kind": "in_memory", "records": "CALM"}}, "state"),
    ({"model.scan_layers": True}, "program"),
    ({"model.remat": "block"}, "program"),
    ({"model.attention": "xla"}, "program"),
    ({"task.text": "path"}, "data"),
    ({"task.pair": "path"}, "data"),
    ({"task.label": "path", SPLIT: {"kind": "random"}}, "DataError"),
    ({"task.labels": ["sport", "screen", "market"]}, "data"),
    ({"task.problem": "multi_label"}, "program"),
    ({"task.metrics": ["accuracy", "f1"]}, "goal"),
    ({"task.best": "loss"}, "goal"),
    ({"task.loss": {"kind": "focal"}}, "program"),
    ({f"{LOSS}.label_smoothing": 0.1, f"{LOSS}.kind": "cross_entropy"}, "program"),
    ({f"{LOSS}.class_weights": [1.0, 2.0, 3.0], f"{LOSS}.kind": "cross_entropy"}, "program"),
    ({"data.source.path": "more"}, "data"),
    ({"data.source.pattern": "*"}, "data"),
    ({f"{SPLIT}.kind": "random"}, "data"),
    ({f"{SPLIT}.seed": 1}, "data"),
    ({f"{SPLIT}.validation": 0.3}, "data"),
    ({f"{SPLIT}.test": 0.3}, "data"),
    ({f"{SPLIT}.by": "text"}, "ConfigError"),
    ({"data.transforms": [{"kind": "clean_text", "min_characters": 20}]}, "data"),
    ({"data.augment": [{"kind": "random_swap", "share": 0.5}]}, "data"),
    ({"data.max_tokens": 10, "data.widths": [8, 10]}, "data"),
    ({"data.over_length": "drop"}, "data"),
    ({"data.over_length": "error"}, "DataError"),
    ({"data.widths": [12]}, "data"),
    ({"data.batch_size": 16}, "data"),
    ({"data.batch_tokens": 192, "data.batch_size": None}, "data"),
    ({"data.evaluation_batch_size": 16}, "evaluation_data"),
    ({"phases.0.train": ["head.*"]}, "program"),
    ({"phases.0.steps": 4}, "steps"),
    ({"phases.0.epochs": 2.0, "phases.0.steps": None}, "steps"),
    ({"phases.0.accumulation": 2, "data.batch_size": 16}, "program"),
    ({"phases.0.average": 0.9}, "state"),
    ({f"{OPTIMIZER}.kind": "sgd"}, "program"),
    ({f"{OPTIMIZER}.beta1": 0.8}, "controls"),
    ({f"{OPTIMIZER}.beta2": 0.8}, "controls"),
    ({f"{OPTIMIZER}.epsilon": 1e-3}, "controls"),
    ({f"{OPTIMIZER}.weight_decay": 0.1}, "controls"),
    ({f"{OPTIMIZER}.no_decay": ["*.scale"]}, "program"),
    ({f"{OPTIMIZER}.clip_norm": 0.1}, "controls"),
    ({f"{OPTIMIZER}.layer_decay": 0.9}, "controls"),
    ({f"{OPTIMIZER}.head_rate": 2.0}, "controls"),
    ({f"{OPTIMIZER}.schedule.peak": 0.02}, "controls"),
    ({f"{OPTIMIZER}.schedule.warmup": 2.0}, "controls"),
    ({f"{OPTIMIZER}.schedule.end": 0.005}, "controls"),
    ({f"{OPTIMIZER}.schedule.kind": "cosine"}, "controls"),
    ({"mesh.data": 4, "mesh.tensor": 2}, "shardings"),
    ({"mesh.fsdp": 8}, "shardings"),
    ({"mesh.tensor": 4}, "shardings"),
]  # fmt: skip

# Options that no part of `Tiny` shows, and the test that does.
ELSEWHERE = {
    "name": "below", "tracking": "below", "evaluation.every_steps": "below", "evaluation.predictions": "below",
    "evaluation.slices": "below", "evaluation.label_check": "below", "evaluation.near_duplicates": "below",
    "checkpoint.every_steps": "below", "checkpoint.keep_latest": "below",
    "model.allowed_licences": "below",
    "data.packing": "tests/data/test_pack.py", "evaluation.answers": "tests/test_language_run.py",
    "model.adapter": "tests/test_adapter_run.py", "model.quantize": "tests/test_adapter_run.py",
    "model.base.family": "tests/models/test_load.py", "model.base.config": "tests/models/test_load.py",
    "data.workers": "changes speed alone: tests/data/test_pipeline.py",
    "data.split.duplicates": "tests/data/test_split.py",
    "phases.0.stopping": "tests/training/test_loop.py", "phases.0.skip_limit": "tests/training/test_loop.py",
}  # fmt: skip

SECTIONS: dict[str, type[Component]] = {
    "": Experiment, "model": Model, "model.base": NewModel, "model.dropout": Rates, "task": TextClassification, LOSS: CrossEntropy,
    "data": Data, SPLIT: Stratified, "phases.0": Phase, OPTIMIZER: AdamW, f"{OPTIMIZER}.schedule": Linear,
    "mesh": Mesh, "evaluation": Evaluation, "checkpoint": Checkpoint,
}  # fmt: skip


def test_every_option_is_in_the_list() -> None:
    meant = {next(iter(changes)) for changes, _ in OPTIONS} | ELSEWHERE.keys()
    meant |= {".".join(name.split(".")[:end]) for name in meant for end in range(1, name.count(".") + 1)}
    missing = [
        name
        for section, cls in SECTIONS.items()
        for field in cls.model_fields
        if (name := f"{section}.{field}".removeprefix(".")) not in meant and not (section == "" and field in ("phases", "data"))
    ]
    assert not missing, f"options without a test that they change something: {', '.join(missing)}"


@pytest.mark.parametrize(("changes", "what"), OPTIONS, ids=lambda x: x if isinstance(x, str) else next(iter(x)))
def test_the_option_changes_something(base: Tiny, changes: dict[str, Any], what: str) -> None:
    errors: dict[str, type[Exception]] = {"DataError": DataError, "ConfigError": ConfigError}
    changes = {name: CALM if value == {"kind": "in_memory", "records": "CALM"} else value for name, value in changes.items()}
    other = Tiny(changed(changes))
    if what in errors:
        with pytest.raises(errors[what]):
            _ = other.data
        assert base.data
    elif "model.head" in changes:  # labels of the checkpoint: its head is kept unless a new one is asked for
        kept = Tiny(changed({name: value for name, value in changes.items() if name != "model.head"}))
        assert kept.state != other.state
    else:
        assert getattr(other, what) != getattr(base, what)


CALM = {
    "kind": "in_memory",
    "records": [{"text": f"{label} {i}", "label": label} for label in ("calm", "glad", "sad") for i in range(20)],
}


def test_nothing_changes_by_itself(base: Tiny) -> None:
    again = Tiny(copy.deepcopy(BASE))
    for what in sorted({what for _, what in OPTIONS if hasattr(Tiny, what)}):
        assert getattr(again, what) == getattr(base, what), what


def test_a_licence_that_is_not_allowed(home: Path) -> None:
    with pytest.raises(ConfigError, match="allowed_licences is MIT"):
        _ = Tiny(changed({"model.allowed_licences": ["MIT"]})).session


def test_options_that_show_in_the_run_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_STARTED", True)  # the tests have their own flags
    usual = {"phases.0.steps": 4, "mesh.tensor": 1}
    first = run(Experiment.model_validate(changed({"name": "usual", **usual}))).folder
    other = {
        "name": "other", "evaluation.every_steps": 1, "evaluation.predictions": False, "checkpoint.every_steps": 1,
        "evaluation.slices": False, "evaluation.label_check": False, "evaluation.near_duplicates": False,
        "checkpoint.keep_latest": 4, "tracking": ["tensorboard"],
    }  # fmt: skip
    second = run(Experiment.model_validate(changed({**usual, **other}))).folder
    assert (first.name, second.name) == ("usual", "other")

    def seen(folder: Path) -> dict[str, Any]:
        rows: Callable[[str], list[dict[str, Any]]] = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]  # noqa: E731
        return {
            "evaluations": sum(row["split"] == "validation" for row in rows("metrics.jsonl")),
            "saves": sum(row["event"] == "saving" for row in rows("events.jsonl")),
            "kept": len(Store(folder / "checkpoints", read_only=True).steps()),
            "predictions": (folder / "predictions" / "test.parquet").is_file(),
            "slices": (folder / "evaluations.jsonl").is_file(),
            "checks": sorted(json.loads((folder / "checks.json").read_text())),
            "tensorboard": any(folder.rglob("*tfevents*")),
        }

    shown = {"predictions": True, "slices": True, "checks": ["labels", "near_duplicates"], "tensorboard": False}
    assert seen(first) == {"evaluations": 1, "saves": 1, "kept": 1, **shown}
    hidden = {"predictions": False, "slices": False, "checks": [], "tensorboard": True}
    assert seen(second) == {"evaluations": 4, "saves": 4, "kept": 4, **hidden}
