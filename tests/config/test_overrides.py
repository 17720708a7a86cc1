from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_experiment import GOOD, Adamw, CrossEntropy, Focal, Sgd, Toy

Make = Callable[..., Toy]
Problems = Callable[..., list[str]]


def test_values_are_read_like_in_the_file(toy: Make):
    words = ["seed=7", "phases.0.epochs=2", "phases.0.optimizer.schedule.rate=1e-3", "data.max_tokens=null", "data.shuffle=false", "name=a=b"]
    made = toy(GOOD, words)
    assert (made.seed, made.phases[0].epochs, made.data.max_tokens, made.data.shuffle, made.name) == (7, 2.0, None, False, "a=b")
    assert made.phases[0].optimizer.schedule.model_dump() == {"rate": 1e-3}
    assert made.phases[1].epochs == 2.0


def test_lists_sections_and_quotes(toy: Make):
    made = toy(GOOD, ['phases.0.train=["a.*", b]', "phases.1.optimizer={kind: sgd, schedule: {kind: constant, rate: 1}}", "name='12'", "task.metrics.0=f1"])
    assert made.phases[0].train == ("a.*", "b") and isinstance(made.phases[1].optimizer, Sgd) and made.name == "12"
    assert [type(metric).__name__ for metric in made.task.metrics] == ["F1", "F1"]


def test_the_file_itself_is_not_needed_to_name_a_section(toy: Make):
    made = toy(GOOD.replace("    stopping: [early_stopping]\n", ""), ["task.loss.class_weights=balanced", "phases.1.stopping=[{kind: early_stopping, patience: 5}]"])
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


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed", '"seed": expected key=value, such as phases.0.epochs=2'),
        ("=3", '"=3": expected key=value, such as phases.0.epochs=2'),
        ("data..path=3", '"data..path=3": expected key=value, such as phases.0.epochs=2'),
        ("phases.2.epochs=1", 'phases.2.epochs: "phases" has 2 items, numbered from 0; there is no 2'),
        ("phases.0.train.1=x", 'phases.0.train.1: "phases.0.train" has 1 item, numbered from 0; there is no 1'),
        ("phases.epochs=1", 'phases.epochs: "phases" is a list; name an item by its number, 0 to 1'),
        ("phases.0.stopping.0.patience=1", 'phases.0.stopping.0.patience: "phases.0.stopping" is a list that the file does not give; set it whole: phases.0.stopping=[...]'),
        ("seed.x=1", 'seed.x: "seed" is a single value (1), not a section'),
        ("phases.0.train=[", "phases.0.train=[: not valid YAML: expected the node content, but found the end"),
        ("phases.0.train=*", "phases.0.train=*: not valid YAML: expected alphabetic or numeric character, but found '\\x00'; put patterns with * { } ! in quotes"),
        ("seed=x", 'seed: must be a whole number (got "x")'),
        ("data.bath_size=3", 'unknown setting "data.bath_size"; did you mean "data.batch_size"?'),
        ("optim.lr=3", 'unknown setting "optim.lr"; this is "phases.0.optimizer" here'),
        ("modle.base=3", 'unknown setting "modle.base"; did you mean "model"?'),
        ("phases.0.optimizer.schedule.kind=cosin", 'phases.0.optimizer.schedule: unknown kind "cosin"; did you mean "cosine"? (known: chain, constant, cosine)'),
        ("phases.0.optimizer.schedule.kind=cosine", 'missing setting "phases.0.optimizer.schedule.peak" (The highest learning rate)'),
        ("task.loss=focal2", 'task.loss: unknown kind "focal2"; did you mean "focal"? (known: cross_entropy, focal)'),
        ("seed=13", "seed: 13 is an unlucky number"),
    ],
)  # fmt: skip
def test_refused(problems: Problems, word: str, message: str):
    assert problems(GOOD, [word]) == [f"command line: {message}"]


def test_given_twice(problems: Problems):
    assert problems(GOOD, ["seed=1", "seed=2"]) == ['command line: "seed" is given twice']
