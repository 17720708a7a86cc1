"""Whole searches of a tiny experiment: what is compiled, what fails, what is found, and that the winner's file gives its number."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import jaxtune
from jaxtune.core.errors import ConfigError
from jaxtune.search.run import search
from jaxtune.search.study import Narrowed, TrialBegan, TrialEnded
from jaxtune.training.loop import Evaluated

pytest.importorskip("optuna")
Write = Callable[..., Path]
RATE = "phases.0.optimizer.schedule.rate"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_trials_that_differ_in_numbers_share_one_compilation(small: Write) -> None:
    """Counted by us and by XLA: after the first trial nothing is compiled at all. The winner's file gives the winner's number."""
    path = small()
    compiled: list[int] = []
    count = [0]

    def listen(event: str, seconds: float, **more: Any) -> None:
        count[0] += "backend_compile" in event

    def watch(event: Any) -> None:
        if isinstance(event, TrialEnded):
            compiled.append(count[0])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        found = search(path, ["trials=5"], watch=watch)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    numbers = found.numbers
    assert numbers["compilations"] == 1 and numbers["trials"] == {"wanted": 5, "complete": 5, "stopped": 0, "failed": 0, "running": 0}
    assert compiled[0] > 0 and compiled[-1] == compiled[0], compiled
    assert numbers["steps"] == 5 * 15 and not (found.folder / "trials" / "0000").exists()
    values = [row["value"] for row in rows(found.folder)]
    assert len(set(values)) > 1 and numbers["winner"]["value"] == max(values)

    trained: list[float] = []
    again = jaxtune.run(
        jaxtune.load_experiment(found.winner),
        watch=lambda event: trained.append(event.metrics["f1"]) if isinstance(event, Evaluated) else None,
    )
    assert max(trained) == numbers["winner"]["value"]
    assert again.validation["f1"] == numbers["winner"]["value"]
    assert [point[1] for point in rows(found.folder)[numbers["winner"]["trial"]]["curve"]][-1] == max(trained)
    page = found.page.read_text()
    assert "tiny-search" in page and "<script" not in page and page.count("<svg") == 4


def test_each_shape_and_structure_is_compiled_once(small: Write) -> None:
    space = {"data.batch_size": [16, 24], "model.dropout": ["none", {"head": 0.1}], "seed": [1, 2]}
    text = f"name: grid\nexperiment: small.yaml\nstrategy: grid\nspace: {json.dumps(space)}\nset: {{phases.0.epochs: 1}}\n"
    found = search(small(text))
    assert found.numbers["trials"]["complete"] == 8
    assert found.numbers["compilations"] == 4
    assert sum(row["compilations"] for row in rows(found.folder)) == 4


def test_what_is_frozen_may_be_searched_in_bfloat16(small: Write) -> None:
    """A parameter that a later phase trains is float32 where it is still frozen: another program for the step and for the evaluation."""
    optimizer = {"kind": "adamw", "schedule": {"kind": "constant", "rate": 1e-2}}
    phases = [{"train": ["head.*"], "steps": 3, "optimizer": optimizer}] * 2
    text = f"""
name: frozen
experiment: small.yaml
strategy: grid
set: {json.dumps({"model.dtype": "bfloat16", "phases": phases})}
space:
  phases.1.train: [["head.*"], ["head.*", "pooler.*"]]
"""
    found = search(small(text))
    assert found.numbers["trials"]["complete"] == 2, rows(found.folder)
    assert found.numbers["compilations"] == 3  # one for head alone in both phases; two where the pooler trains in the second


def test_impossible_and_diverging_trials_are_noted_and_the_search_goes_on(small: Write) -> None:
    text = f"""
name: failing
experiment: small.yaml
strategy: grid
space: {{data.batch_size: [16, 7], {RATE}: [0.01, 1.0e+38]}}
"""
    found = search(small(text))
    states = {(row["settings"]["data.batch_size"], row["settings"][RATE]): (row["state"], row["reason"]) for row in rows(found.folder)}
    assert states[16, 0.01] == ("complete", "")
    assert states[16, 1e38][0] == "failed" and "not finite" in states[16, 1e38][1]
    assert all(states[7, rate][0] == "failed" and "data.batch_size" in states[7, rate][1] for rate in (0.01, 1e38))
    assert found.numbers["winner"]["settings"] == {"data.batch_size": 16, RATE: 0.01}

    with pytest.raises(ConfigError, match=r"all 2 trials failed\n.*batch_size"):
        search(small(text.replace("[16, 7]", "[7]").replace("failing", "all-failing")))


def test_hyperband_stops_poor_trials_and_nothing_is_trained_twice(small: Write) -> None:
    text = f"""
name: bands
experiment: small.yaml
strategy: {{kind: hyperband, sampler: random, min_steps: 3, reduction: 2, brackets: 1}}
metric: loss
space: {{{RATE}: {{kind: float, low: 1.0e-6, high: 3.0e-2, log: true}}}}
trials: 10
"""
    found = search(small(text))
    every = rows(found.folder)
    assert found.numbers["trials"]["stopped"] >= 3 and found.numbers["steps"] < 10 * 15
    for row in every:
        assert row["steps"] == row["curve"][-1][0] and (row["state"] == "complete") == (row["steps"] == 15)
        assert ("rung of step" in row["reason"]) == (row["state"] == "stopped")
    # a trial that went on has at every step what it has when it is trained alone
    winner = found.numbers["winner"]["trial"]
    alone = search(
        small(
            text.replace("bands", "alone").replace("{kind: hyperband, sampler: random, min_steps: 3, reduction: 2, brackets: 1}", "random")
        )
    )
    assert rows(alone.folder)[winner]["curve"] == every[winner]["curve"]
    assert rows(alone.folder)[winner]["settings"] == every[winner]["settings"]

    with pytest.raises(ConfigError, match=r"write set: \{evaluation\.every_steps: "):
        search(small(text.replace("bands", "blind") + "set: {evaluation.every_steps: null}\n"))


def test_narrowing_and_finalists(small: Write) -> None:
    text = f"""
name: narrow
experiment: small.yaml
strategy: {{kind: tpe, startup: 3}}
space: {{{RATE}: {{kind: float, low: 1.0e-6, high: 1.0e-1, log: true}}}}
set: {{phases.0.epochs: 1}}
trials: 9
narrow: {{keep: 0.4, rounds: 2}}
finalists: {{count: 2, seeds: 2}}
"""
    path = small(text)
    seen: list[Any] = []
    found = search(path, watch=seen.append)
    every, numbers = rows(found.folder), found.numbers
    rounds = [event for event in seen if isinstance(event, Narrowed)]
    assert [(event.round, event.trial) for event in rounds] == [(1, 3), (2, 6)]
    low, high = 1e-6, 1e-1
    for event in rounds:
        new_low, new_high = event.ranges[RATE]
        assert low <= new_low < new_high <= high and (new_low, new_high) != (low, high)
        low, high = new_low, new_high
        assert all(low <= row["settings"][RATE] <= high for row in every if event.trial <= row["trial"] < event.trial + 3)
    assert [row["ranges"][RATE] for row in numbers["narrowed"]] == [list(event.ranges[RATE]) for event in rounds]

    finalists = numbers["finalists"]
    assert len(finalists) == 2 and all(len(one["values"]) == 2 for one in finalists)
    assert finalists[0]["mean"] >= finalists[1]["mean"] and numbers["winner"]["trial"] == finalists[0]["trial"]
    assert sorted((one["first"] for one in finalists), reverse=True) == sorted((row["value"] for row in every), reverse=True)[:2]

    before = (found.folder / "trials.jsonl").read_text()
    seen.clear()
    again = search(path, watch=seen.append)  # a search that is done has nothing more to do
    assert seen == [] and again.numbers == numbers and (found.folder / "trials.jsonl").read_text() == before
    with pytest.raises(ConfigError, match="holds a search with another seed"):
        search(path, ["seed=4"])
    with pytest.raises(ConfigError, match="holds a search with another experiment"):
        search(path, ['set={"phases.0.epochs": 2}'])


def test_more_trials_are_added_to_a_search_that_is_done(small: Write) -> None:
    path = small()
    short = ['set={"phases.0.steps": 2, "phases.0.epochs": null}']
    first = search(path, ["trials=2", *short])
    before = rows(first.folder)
    second = search(path, ["trials=4", *short])
    assert rows(second.folder)[:2] == before and len(rows(second.folder)) == 4
    whole = search(path, ["trials=4", "name=whole", *short])
    told = ("settings", "value", "curve", "state", "steps")
    assert [[row[name] for name in told] for row in rows(whole.folder)] == [[row[name] for name in told] for row in rows(second.folder)]


def test_workers_share_a_database(small: Write, tmp_path: Path) -> None:
    """Two machines of one name (two folders), of which the first dies in its second trial; it finds that trial again, the other leaves it alone."""
    text = small().read_text() + f"storage: sqlite:///{tmp_path}/shared.db\nset: {{phases.0.epochs: 1}}\n"

    class Died(BaseException):
        pass

    def die(event: Any) -> None:
        if isinstance(event, TrialBegan) and event.number == 1:
            raise Died

    with pytest.raises(Died):
        search(small(text), ["trials=5"], worker=True, runs_dir="here", watch=die)
    began: list[tuple[int, bool]] = []

    def note(event: Any) -> None:
        if isinstance(event, TrialBegan):
            began.append((event.number, event.again))

    helped = search(small(text), ["trials=4"], worker=True, runs_dir="there", watch=note)
    assert began == [(2, False), (3, False)] and helped.numbers["trials"] == {
        "wanted": 4,
        "complete": 3,
        "stopped": 0,
        "failed": 0,
        "running": 1,
    }
    assert not helped.winner.exists()
    began.clear()
    found = search(small(text), ["trials=5"], runs_dir="here", watch=note)
    assert began == [(1, True), (4, False)] and found.numbers["trials"]["complete"] == 5 and found.winner.exists()
    everyone = {row["trial"]: row for row in rows(found.folder)}
    alone = rows(search(small(text.replace("tiny-search", "alone").replace("storage:", "# storage:")), ["trials=5"]).folder)
    assert [everyone[row["trial"]]["curve"] for row in alone] == [row["curve"] for row in alone]
    with pytest.raises(ConfigError, match="storage is a file of one process"):
        search(small(), worker=True)


def test_refusals(small: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "tiny-search").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-search" / "resolved.yaml").write_text("x: 1\n")
    with pytest.raises(ConfigError, match="is no search; give another --name"):
        search(small())
    with pytest.raises(ConfigError, match="no validation split"):
        search(small(), ["name=other", 'set={"data.split": {"kind": "stratified", "by": "label", "validation": 0.0, "test": 0.2}}'])
    with pytest.raises(ConfigError, match=r"cannot be opened|driver is not installed"):
        search(small(), ["name=other", "storage=postgresql://user:secret@nowhere.invalid/x"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "jaxtune\[search\]"'):
        search(small(), ["name=other"])
