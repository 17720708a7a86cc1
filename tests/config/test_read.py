"""Broken experiments and the exact words about them; one experiment, one thing wrong, unless several at once are the point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_experiment import GOOD, Adamw, Cosine, Toy, blocks

from jaxtune.config.read import read
from jaxtune.core.errors import ConfigError

Problems = Callable[..., list[str]]

CASES = [dict(line.split(" ", 1) for line in block.split("\n")) for block in blocks("broken.txt")]


@pytest.mark.parametrize("case", CASES, ids=[case["+"][:40] for case in CASES])
def test_one_thing_wrong(problems: Problems, case: dict[str, str]):
    old, new = (case[mark].replace("\\n", "\n").replace("(nothing)", "") for mark in "-+")
    assert old in GOOD
    assert problems(GOOD.replace(old, new, 1)) == [case["="]]


def test_the_good_one(toy: Callable[..., Toy]):
    made = toy(GOOD)
    assert made.phases[1].optimizer == Adamw(weight_decay=0.01, schedule=Cosine(peak=1e-4))
    assert made.phases[0].epochs == 1.0 and made.phases[1].stopping[0].patience == 3


def test_everything_wrong_is_told_at_once_in_the_order_of_the_file(problems: Problems):
    text = GOOD.replace("seed: 1", "sed: 1").replace("beta: 2", "beta: x").replace("peak: 1e-4", "peek: 1e-4")
    text = text.replace("epochs: 1", "epochs: -1").replace("max_tokens: 128", "max_tokens: 13\n  batch_size: 13")
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
