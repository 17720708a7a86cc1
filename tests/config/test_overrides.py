from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_experiment import GOOD, Adamw, CrossEntropy, Focal, Sgd, Toy, blocks

Make = Callable[..., Toy]
Problems = Callable[..., list[str]]


def test_values_are_read_like_in_the_file(toy: Make):
    words = ["seed=7", "phases.0.epochs=2", "phases.0.optimizer.schedule.rate=1e-3", "data.max_tokens=null", "data.shuffle=false"]
    made = toy(GOOD, [*words, "name=a=b"])
    assert (made.seed, made.phases[0].epochs, made.data.max_tokens, made.data.shuffle, made.name) == (7, 2.0, None, False, "a=b")
    assert made.phases[0].optimizer.schedule.model_dump() == {"rate": 1e-3}
    assert made.phases[1].epochs == 2.0


def test_lists_sections_and_quotes(toy: Make):
    whole = "phases.1.optimizer={kind: sgd, schedule: {kind: constant, rate: 1}}"
    made = toy(GOOD, ['phases.0.train=["a.*", b]', whole, "name='12'", "task.metrics.0=f1"])
    assert made.phases[0].train == ("a.*", "b") and isinstance(made.phases[1].optimizer, Sgd) and made.name == "12"
    assert [type(metric).__name__ for metric in made.task.metrics] == ["F1", "F1"]


def test_the_file_itself_is_not_needed_to_name_a_section(toy: Make):
    text = GOOD.replace("    stopping: [early_stopping]\n", "")
    made = toy(text, ["task.loss.class_weights=balanced", "phases.1.stopping=[{kind: early_stopping, patience: 5}]"])
    assert made.task.loss == CrossEntropy(label_smoothing=0.2, class_weights="balanced")
    assert made.phases[1].stopping[0].patience == 5


def test_a_default_kind_is_opened_and_the_rest_of_it_stays(toy: Make):
    text = GOOD.replace("  loss: {kind: cross_entropy, label_smoothing: 0.2}\n", "")
    assert toy(text, ["task.loss.class_weights=balanced"]).task.loss == CrossEntropy(label_smoothing=0.1, class_weights="balanced")


def test_a_bare_kind_is_opened(toy: Make):
    text = GOOD.replace("loss: {kind: cross_entropy, label_smoothing: 0.2}", "loss: focal")
    assert toy(text, ["task.loss.gamma=3"]).task.loss == Focal(gamma=3)


@pytest.mark.parametrize("order", [1, -1])
def test_another_kind_starts_afresh_wherever_it_stands(toy: Make, order: int):
    words = ["task.loss.kind=focal", "task.loss.gamma=4"][::order]
    assert toy(GOOD, words).task.loss == Focal(gamma=4)
    same = toy(GOOD, ["phases.1.optimizer.kind=adamw"]).phases[1].optimizer
    assert isinstance(same, Adamw) and same.weight_decay == 0.01


CASES = [dict(line.split(" ", 1) for line in block.split("\n")) for block in blocks("broken_words.txt")]


@pytest.mark.parametrize("case", CASES, ids=[case["!"] for case in CASES])
def test_refused(problems: Problems, case: dict[str, str]):
    assert problems(GOOD, [case["!"]]) == [f"command line: {case['=']}"]


def test_given_twice(problems: Problems):
    assert problems(GOOD, ["seed=1", "seed=2"]) == ['command line: "seed" is given twice']
