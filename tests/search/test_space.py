"""The space against the experiment: everything wrong is told before anything runs, with file and line; and the way back to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxtune.core.errors import ConfigError
from jaxtune.experiment import load_experiment
from jaxtune.search.results import write_winner
from jaxtune.search.run import load_search
from jaxtune.search.space import Space, short_names

Write = Callable[[str], Path]

HEAD = "name: s\nexperiment: small.yaml\nspace:\n"


def opened(path: Path) -> Space:
    return Space.open(*load_search(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("phases.0.optimizer.schedule.rat: [1.0e-3]", ['search.yaml:4: unknown setting "phases.0.optimizer.schedule.rat"', "did you mean"]),
        ("phases.3.epochs: [1, 2]", ["search.yaml:4:", "there is no 3"]),
        ("learning_rate: [1.0e-3]", ["search.yaml:4:", "phases.0.optimizer.schedule.rate"]),
        (
            "phases.0.epochs: {kind: float, low: -1.0, high: 2.0}",
            ["search.yaml:4: with the value -1.0: phases.0.epochs: must be greater than 0"],
        ),
        ("model.dtype: [float32, float8]", ['with the value "float8": model.dtype: must be']),
        ("data.batch_size: {kind: float, low: 8, high: 16}", ["with the value 8.0", "whole number", "with the value 16.0"]),
        ("phases.0.optimizer.kind: [adamw, sgdd]", ['did you mean "sgd"']),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(small: Write, line: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(small(f"{HEAD}  {line}\n"))
    for words in said:
        assert words in str(caught.value)


def test_all_keys_are_told_at_once(small: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(small(f"{HEAD}  phases.0.epochs: [0]\n  model.bace: [x]\n  seed: [1, -1]\n"))
    problems = "\n".join(caught.value.problems)
    assert all(f"search.yaml:{line}:" in problems for line in (4, 5, 6))


def test_a_wrong_experiment_and_a_wrong_metric(small: Write) -> None:
    with pytest.raises(ConfigError, match=r"no file .*smal\.yaml.*small\.yaml"):
        opened(small("name: s\nexperiment: smal.yaml\nspace: {seed: [1]}\n"))
    with pytest.raises(ConfigError, match=r'search\.yaml:2: .*"f2" is not measured'):
        opened(small("name: s\nexperiment: small.yaml\nmetric: f2\nspace: {seed: [1]}\n"))


def test_values_are_good_when_they_go_with_some_values_of_the_others(small: Write) -> None:
    """A peak above the file's own end, an end above the file's own peak: each is wrong alone and right together."""
    key = "phases.0.optimizer.schedule"
    text = f"""{HEAD}  {key}.peak: {{kind: float, low: 1.0e-2, high: 1.0, log: true}}
  {key}.end: {{kind: float, low: 1.0e-3, high: 1.0e-2, log: true}}
set: {{{key}: {{kind: linear, peak: 1.0e-5, end: 1.0e-6}}}}
"""
    space = opened(small(text))
    assert space.experiment({f"{key}.peak": 0.5, f"{key}.end": 0.01}).phases[0].optimizer.schedule.peak == 0.5  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="above the peak"):
        space.experiment({f"{key}.peak": 0.01, f"{key}.end": 0.02})


def test_conditions_are_met_before_a_key_is_tried(small: Write) -> None:
    key = "phases.0.optimizer"
    text = f"""{HEAD}  {key}.momentum: {{kind: float, low: 0.1, high: 0.9, when: {{{key}.kind: sgd}}}}
  {key}:
    - {{kind: adamw, schedule: {{kind: constant, rate: 0.01}}}}
    - {{kind: sgd, schedule: {{kind: constant, rate: 0.1}}}}
"""
    space = opened(small(text))
    assert list(space.parameters) == [key, f"{key}.momentum"]
    chosen = space.experiment({key: {"kind": "sgd", "schedule": {"kind": "constant", "rate": 0.1}}, f"{key}.momentum": 0.5})
    assert chosen.phases[0].optimizer.momentum == 0.5  # type: ignore[attr-defined]


def test_the_winners_file_becomes_the_trials_experiment(small: Write, tmp_path: Path) -> None:
    text = f"""{HEAD}  phases.0.optimizer.schedule.rate: [0.02, 0.03]
  model.dropout.head: [0.1]
  task.loss: [{{kind: cross_entropy, label_smoothing: 0.1}}, focal]
  data.batch_size: [16, 8]
set: {{data.max_tokens: 12, data.widths: [12]}}
"""
    space = opened(small(text))
    settings = {
        "phases.0.optimizer.schedule.rate": 0.03,
        "model.dropout.head": 0.1,
        "task.loss": {"kind": "cross_entropy", "label_smoothing": 0.1},
        "data.batch_size": 8,
    }
    folder = tmp_path / "runs" / "found"
    folder.mkdir(parents=True)
    path = write_winner(folder, space, "found-winner", settings, "as told")
    text = path.read_text()
    assert text.startswith("# as told\nextends: ../../small.yaml\nname: found-winner\n") and len(text.splitlines()) < 30
    assert load_experiment(path) == space.experiment({**settings, "name": "found-winner"})
    assert load_experiment(path).phases[0].optimizer.schedule.rate == 0.03  # type: ignore[attr-defined]


def test_what_extending_cannot_say_is_said_in_full(small: Write, tmp_path: Path) -> None:
    """A section replaced by one of the same kind loses the old settings; by `extends` it would keep them."""
    (tmp_path / "small.yaml").write_text(
        (tmp_path / "small.yaml").read_text().replace("{loss: cross_entropy}", "{loss: {kind: cross_entropy, label_smoothing: 0.2}}")
    )
    space = opened(small(f"{HEAD}  task.loss: [{{kind: cross_entropy}}, focal]\n"))
    path = write_winner(tmp_path, space, "w", {"task.loss": {"kind": "cross_entropy"}}, "x")
    assert "extends" not in path.read_text()
    assert load_experiment(path).task.loss.label_smoothing == 0.0  # type: ignore[attr-defined]


def test_names_are_short_and_distinct() -> None:
    keys = ["phases.0.optimizer.schedule.peak", "phases.1.optimizer.schedule.peak", "model.dropout.head", "peak"]
    names = short_names(keys)
    assert names["model.dropout.head"] == "head" and len(set(names.values())) == 4
    assert names["phases.0.optimizer.schedule.peak"] == "0.optimizer.schedule.peak"
