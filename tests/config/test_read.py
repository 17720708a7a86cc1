"""Broken experiments and the exact words about them; one experiment, one thing wrong, unless several at once are the point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_experiment import GOOD, Adamw, Cosine, Toy

from jaxtune.config.read import read
from jaxtune.core.errors import ConfigError

Problems = Callable[..., list[str]]

BROKEN = [  # (what of GOOD is replaced, by what, the message)
    ("name: quick\n", "", 'x.yaml: missing setting "name" (Of the run folder)'),
    ("base: some/model", "bas: some/model", 'x.yaml:3: unknown setting "model.bas"; did you mean "model.base"?'),
    ("base: some/model, ", "", 'x.yaml:3: missing setting "model.base" (Hub id or folder)'),
    ("label_smoothing: 0.2", "label_smoothing: 2", "x.yaml:5: task.loss.label_smoothing: must be less than 1 (got 2)"),
    ("label_smoothing: 0.2", "label_smoothing: -1", "x.yaml:5: task.loss.label_smoothing: must be at least 0 (got -1)"),
    ("beta: 2", "beta: 0", "x.yaml:6: task.metrics.1.beta: must be greater than 0 (got 0)"),
    ("dtype: float32", "dtype: float23", 'x.yaml:3: model.dtype: must be one of bfloat16, float32 (got "float23"); did you mean "float32"?'),
    ("dtype: float32", "scan_layers: yes", 'x.yaml:3: model.scan_layers: must be auto or true or false (got "yes"); write true'),
    ("seed: 1", "seed: 1.0", "x.yaml:2: seed: must be a whole number (got 1.0); write 1"),
    ("seed: 1", "seed: 1.5", "x.yaml:2: seed: must be a whole number (got 1.5)"),
    ("seed: 1", "seed: 017", 'x.yaml:2: seed: must be a whole number (got "017"); write 17 without quotes'),
    ("seed: 1", "seed: 10_000", 'x.yaml:2: seed: must be a whole number (got "10_000"); write 10000 without quotes'),
    ("seed: 1", "seed: true", "x.yaml:2: seed: must be a whole number (got true)"),
    ("seed: 1", "seed:", "x.yaml:2: seed: must be a whole number (got null)"),
    ("seed: 1", "seed: 13", "x.yaml:2: seed: 13 is an unlucky number"),
    ("name: quick", "name: 2024", 'x.yaml:1: name: must be text (got 2024); write "2024" in quotes'),
    ("name: quick", "name: true", 'x.yaml:1: name: must be text (got true); write "true" in quotes'),
    ("name: quick", "name: unlucky", "x.yaml: this experiment is unlucky as a whole"),
    ("max_tokens: 128", "max_tokens: many", 'x.yaml:9: data.max_tokens: must be a whole number (got "many")'),
    ("max_tokens: 128", "shuffle: off", 'x.yaml:9: data.shuffle: must be true or false (got "off"); write false'),
    ("max_tokens: 128", "shuffle: 1", "x.yaml:9: data.shuffle: must be true or false (got 1); write true"),
    ("max_tokens: 128", "batch_size: 13", "x.yaml:9: data.batch_size: 13 is an unlucky number"),
    ("max_tokens: 128", "batch_size: 7", "x.yaml:9: data.batch_size: 7 does not fit phases.0.train"),
    ("path: reviews.csv", "path: [a]", "x.yaml:8: data.path: must be text or a section with settings (got ['a'])"),
    ('train: ["head.*"]', "train: head", 'x.yaml:11: phases.0.train: must be a list (got "head"); write ["head"]'),
    ('train: ["head.*"]', "train: []", "x.yaml:11: phases.0.train: must have at least 1 item (has 0)"),
    ('train: ["head.*"]', "train: [3]", 'x.yaml:11: phases.0.train.0: must be text (got 3); write "3" in quotes'),
    ("epochs: 1", "epochs: fast", 'x.yaml:12: phases.0.epochs: must be a number (got "fast")'),
    ("epochs: 1", 'epochs: "1.5"', 'x.yaml:12: phases.0.epochs: must be a number (got "1.5"); write 1.5 without quotes'),
    ("rate: 5e-4", "rate: 0", "x.yaml:13: phases.0.optimizer.schedule.rate: must be greater than 0 (got 0)"),
    ("rate: 5e-4", "rat: 5e-4", 'x.yaml:13: unknown setting "phases.0.optimizer.schedule.rat"; did you mean "phases.0.optimizer.schedule.rate"?'),
    (", rate: 5e-4", "", 'x.yaml:13: missing setting "phases.0.optimizer.schedule.rate" (The learning rate)'),
    ("kind: cosine", "kind: cosin", 'x.yaml:18: phases.1.optimizer.schedule: unknown kind "cosin"; did you mean "cosine"? (known: chain, constant, cosine)'),
    ("kind: cosine, ", "", 'x.yaml:18: phases.1.optimizer.schedule: "kind" is missing (known: chain, constant, cosine)'),
    ("      kind: adamw", "      name: adamw", 'x.yaml:15: phases.1.optimizer: "kind" is missing; write it instead of "name" (known: adamw, gone, sgd)'),
    ("      kind: adamw", "      kind: gone", "x.yaml:16: phases.1.optimizer: kind toy_experiment_gone:Gone: no module named toy_experiment_gone"),
    ("[accuracy,", "[accurate,", 'x.yaml:6: task.metrics.0: unknown kind "accurate"; did you mean "accuracy"? (known: accuracy, f1)'),
    ("[accuracy,", "[3,", "x.yaml:6: task.metrics.0: must name a kind, or be a section with a kind (known: accuracy, f1)"),
    ("loss: {kind: cross_entropy, label_smoothing: 0.2}", "loss: 5", "x.yaml:5: task.loss: must name a kind, or be a section with a kind (known: cross_entropy, focal)"),
    ("label_smoothing: 0.2", "class_weights: uniform", 'x.yaml:5: task.loss.class_weights: must be one of none, balanced or a list (got "uniform"); write ["uniform"]'),
    ("label_smoothing: 0.2", "class_weights: [1, x]", 'x.yaml:5: task.loss.class_weights.1: must be a number (got "x")'),
    ("label_smoothing: 0.2", "gamma: 2", 'x.yaml:5: unknown setting "task.loss.gamma"; it is a setting of kind focal, but the kind here is cross_entropy'),
    ("seed: 1", "optimizer: adamw", 'x.yaml:2: unknown setting "optimizer"; did you mean "phases.0.optimizer"?'),
    ("seed: 1", "max_token: 5", 'x.yaml:2: unknown setting "max_token"; did you mean "data.max_tokens"?'),
    ("seed: 1", "learning_rate: 1e-3", 'x.yaml:2: unknown setting "learning_rate"; this is "phases.0.optimizer.schedule.rate" here'),
    ("      weight_decay: 0.01", "      lr: 1e-3", 'x.yaml:17: unknown setting "phases.1.optimizer.lr"; this is "phases.1.optimizer.schedule.peak" here'),
    ("      weight_decay: 0.01", "      wd: 1", 'x.yaml:17: unknown setting "phases.1.optimizer.wd"; this is "phases.1.optimizer.weight_decay" here'),
    ("seed: 1", "per_device_train_batch_size: 8", 'x.yaml:2: unknown setting "per_device_train_batch_size"; this is "data.batch_size" here'),
    ("seed: 1", "num_train_epochs: 3", 'x.yaml:2: unknown setting "num_train_epochs"; this is "phases.0.epochs" here'),
    ("max_tokens: 128", "max_seq_length: 8", 'x.yaml:9: unknown setting "data.max_seq_length"; this is "data.max_tokens" here'),
    ("seed: 1", "warmup-ratio: 0.1", 'x.yaml:2: unknown setting "warmup-ratio"; this is "phases.1.optimizer.schedule.warmup" here'),
    ("seed: 1", "output_dir: out", 'x.yaml:2: unknown setting "output_dir"; --runs-dir and --name choose the run folder'),
    ("seed: 1", "Seed: 1", 'x.yaml:2: unknown setting "Seed"; did you mean "seed"?'),
    ("max_tokens: 128", "max-tokens: 128", 'x.yaml:9: unknown setting "data.max-tokens"; did you mean "data.max_tokens"?'),
    ("seed: 1", "zebra: 1", 'x.yaml:2: unknown setting "zebra" (known here: name, seed, model, task, data, phases)'),
    ("[accuracy,", "[{kind: accuracy, zebra: 1},", 'x.yaml:6: unknown setting "task.metrics.0.zebra" (known here: no settings)'),
    ("stopping: [early_stopping]", "stopping: early_stopping", 'x.yaml:19: phases.1.stopping: must be a list (got "early_stopping"); write ["early_stopping"]'),
    ("model: {base: some/model, dtype: float32}", "model: big", 'x.yaml:3: model: must be a section with settings (got "big")'),
    ("base: some/model", "base: {config: {}}", 'x.yaml:3: missing setting "model.base.family" (Name of the family)'),
    ("base: some/model", "base: {family: vit, config: {a: [1]}}", "x.yaml:3: model.base.config.a: must be a number or a whole number or text or true or false (got [1])"),
    ("seed: 1", "seed: 1\nseed: 2", 'x.yaml:3: "seed" is given twice (first at line 2)'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BROKEN, ids=[f"{i}-{new.strip()[:30]}" for i, (_, new, _) in enumerate(BROKEN)])
def test_one_thing_wrong(problems: Problems, old: str, new: str, message: str):
    assert GOOD.count(old) >= 1
    assert problems(GOOD.replace(old, new, 1)) == [message]


def test_the_good_one(toy: Callable[..., Toy]):
    made = toy(GOOD)
    assert made.phases[1].optimizer == Adamw(weight_decay=0.01, schedule=Cosine(peak=1e-4))
    assert made.phases[0].epochs == 1.0 and made.phases[1].stopping[0].patience == 3


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file(problems: Problems):
    text = GOOD.replace("seed: 1", "sed: 1").replace("beta: 2", "beta: x").replace("peak: 1e-4", "peek: 1e-4").replace("epochs: 1", "epochs: -1")
    text = text.replace("max_tokens: 128", "max_tokens: 13\n  batch_size: 13")
    assert problems(text, ["phases.0.optimizer.weight_decay=-1", "data.path"]) == [
        'command line: "data.path": expected key=value, such as phases.0.epochs=2',
        'x.yaml:2: unknown setting "sed"; did you mean "seed"?',
        'x.yaml:6: task.metrics.1.beta: must be a number (got "x")',
        "x.yaml:9: data.max_tokens: 13 as well",
        "x.yaml:10: data.batch_size: 13 is an unlucky number",
        "x.yaml:13: phases.0.epochs: must be greater than 0 (got -1)",
        'x.yaml:19: unknown setting "phases.1.optimizer.schedule.peek"; did you mean "phases.1.optimizer.schedule.peak"?',
        "command line: phases.0.optimizer.weight_decay: must be at least 0 (got -1)",
    ]


def test_problems_name_the_file_that_a_setting_came_from(here: Path):
    (here / "base.yaml").write_text(GOOD.replace("beta: 2", "beta: x"))
    (here / "x.yaml").write_text("extends: base.yaml\ndata: {batch_size: 0}\n")
    with pytest.raises(ConfigError) as caught:
        read("x.yaml", [], Toy)
    assert caught.value.problems == (
        'base.yaml:6: task.metrics.1.beta: must be a number (got "x")',
        "x.yaml:2: data.batch_size: must be at least 1 (got 0)",
    )


def test_nested_kinds_in_lists(problems: Problems):
    schedule = "{kind: chain, parts: [{kind: constant, rate: 1}, {kind: cosine, peak: 0}, {kind: cosy}]}"
    assert problems(GOOD.replace("{kind: constant, rate: 5e-4}", schedule)) == [
        "x.yaml:13: phases.0.optimizer.schedule.parts.1.peak: must be greater than 0 (got 0)",
        'x.yaml:13: phases.0.optimizer.schedule.parts.2: unknown kind "cosy"; did you mean "cosine"? (known: chain, constant, cosine)',
    ]


def test_the_yaml_is_judged_before_the_class_is_imported(here: Path):
    (here / "x.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="given twice"):
        read("x.yaml", [], "no_such_module:Experiment")


def test_reading_does_not_import_jax(here: Path):
    (here / "x.yaml").write_text("name: [\n")
    program = (
        "import sys, jaxtune.config.read as r, jaxtune.config.write, jaxtune.config.describe, jaxtune.config.locate\n"
        "try: r.read('x.yaml', [], 'jaxtune.experiment:Experiment')\n"
        "except r.ConfigError as error: print(error)\n"
        "print(sorted({'jax', 'numpy', 'flax', 'transformers', 'huggingface_hub', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and done.stdout.startswith("x.yaml:2: not valid YAML")
