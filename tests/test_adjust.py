"""Changes to a run while it trains: what may change, that it has its effect, and that a killed run replays it bit by bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from killing import after_step, differences, strike
from tiny_run import Trained

from jaxtune.adjust import Change, Requests, adjusted, in_force
from jaxtune.core.errors import ConfigError
from jaxtune.core.nested import differences as changed
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.session import remembered
from jaxtune.training.state import overlay
from jaxtune.training.stopping.early_stopping import EarlyStopping
from jaxtune.training.stopping.plateau import Plateau


@pytest.fixture(scope="module")
def experiment(trained: Trained) -> Experiment:
    return load_experiment(trained.run / "resolved.yaml")


def test_what_changes_is_told(experiment: Experiment):
    after = adjusted(experiment, ["phases.1.optimizer.schedule.peak=1e-4", "phases.1.stopping.0.patience=9", "data.batch_size=8"], 0)
    assert changed(experiment.model_dump(mode="json"), after.model_dump(mode="json")) == {
        "data.batch_size": (16, 8),
        "phases.1.optimizer.schedule.peak": (3e-3, 1e-4),
        "phases.1.stopping.0.patience": (4, 9),
    }
    assert adjusted(experiment, ["rate_scale=0.5", "stop=run"], 0) == experiment
    assert Change.read(["rate_scale=0.5", "stop=run"]) == Change((), 0.5, "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to change"),
        (["rate_scale=0"], "rate_scale=0: expected a factor above 0"),
        (["rate_scale=fast"], "rate_scale=fast: expected a factor above 0"),
        (["stop=now"], "stop=now: expected stop=phase"),
        (["model.base=other"], "model.base: cannot change while a run goes on"),
        (
            ['phases.1.optimizer={"kind": "lion", "schedule": {"kind": "constant", "rate": 1e-4}}'],
            "phases.1.optimizer.kind: cannot change while a run goes on",
        ),
        (["phases.0.epochs=9"], "phases.0.epochs: phase 0 is over; the run is in phase 1"),
        (["data.batch_size=16"], "the run has these values already"),
        (["data.batch_sise=8"], "batch_size"),
        (["phases.1.epochs=many"], "phases.1.epochs"),
    ],
)
def test_what_cannot_change(experiment: Experiment, words: list[str], message: str):
    with pytest.raises(ConfigError) as caught:
        adjusted(experiment, words, 1)
    assert message in str(caught.value)


def test_requests_are_never_changed(tmp_path: Path):
    requests = Requests(tmp_path)
    assert requests.due(3) == []
    assert [requests.ask(["rate_scale=0.5"]), requests.ask(["stop=run"])] == [1, 2]
    assert requests.due(3) == [1, 2]
    requests.take(1, 3)
    requests.take(2, 3, ["it does not fit"])
    assert requests.due(3) == [1] and requests.due(6) == []  # taken up again where it was, never elsewhere
    assert requests.ask(["stop=phase"]) == 3 and requests.wanted() == [["rate_scale=0.5"], ["stop=phase"]]
    assert sorted(path.name for path in requests.folder.iterdir()) == [
        "0001.json", "0001.taken.json", "0002.json", "0002.taken.json", "0003.json",
    ]  # fmt: skip


def test_what_waits_at_the_end_of_a_checkpoint_is_not_in_force():
    rows = [{"step": 3}, {"step": 6}]
    assert in_force({"step": 6, "ending": "adjust", "adjustments": rows}) == rows[:1]
    assert in_force({"step": 7, "ending": "", "adjustments": rows}) == rows
    assert in_force({"step": 7, "ending": ""}) == []


def test_rules_remember_where_they_are_the_same():
    before = (EarlyStopping(patience=3), Plateau(patience=2))
    memory: list[dict[str, Any]] = [{"best": 0.5, "waited": 2}, {"best": 0.4, "waited": 1}]
    assert remembered(before, (EarlyStopping(patience=9), EarlyStopping()), memory) == [memory[0], EarlyStopping().start()]


def test_layers_are_laid_over_whatever_the_cuts():
    source = {"layers.0-0.k": jnp.array([[1.0]]), "layers.1-2.k": jnp.array([[2.0], [3.0]]), "head": jnp.array(9.0)}
    values = {"layers.0-1.k": jnp.zeros((2, 1), jnp.bfloat16), "layers.2-2.k": jnp.zeros((1, 1)), "head": jnp.array(0.0)}
    out = overlay(values, source, lambda name: name != "layers.0.k")
    assert {key: np.asarray(value, np.float32).tolist() for key, value in out.items()} == {
        "layers.0-1.k": [[0.0], [2.0]],
        "layers.2-2.k": [[3.0]],
        "head": 9.0,
    }
    assert out["layers.0-1.k"].dtype == jnp.bfloat16


FIRST = ['phases.0.train=["head.*", "layers.1.*"]', "phases.0.optimizer.schedule.rate=3e-3", "data.batch_size=8"]
SECOND = ["rate_scale=0.5", "phases.1.stopping.0.patience=6", 'phases.1.train=["*"]', "evaluation.every_steps=4"]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for line in (run / "events.jsonl").read_text().splitlines() if (row := json.loads(line))["event"] == kind]


def test_an_adjusted_run_is_replayed_bit_by_bit(trained: Trained, tmp_path: Path):
    """Adjusted in both phases; one is left alone, its twin is killed twice more at random steps."""
    here, there = tmp_path / "here", tmp_path / "there"
    tiny_run.write_all(here)
    assert strike(here, after_step(4))[0] == -signal.SIGKILL
    done = tiny_run.run("adjust", "runs/tiny", *FIRST, "--json", folder=here)
    assert done.code == 0 and done.told["number"] == 1, done.stderr
    assert strike(here, after_step(33))[0] == -signal.SIGKILL
    assert tiny_run.run("adjust", "runs/tiny", *SECOND, folder=here).code == 0
    assert tiny_run.run("adjust", "runs/tiny", "phases.1.epochs=0.1", 'phases.1.train=["nothing.*"]', folder=here).code == 0
    shutil.copytree(here, there)

    assert tiny_run.run("resume", "runs/tiny", folder=here).code == 0
    one = here / "runs" / "tiny"
    taken = [json.loads((one / "adjust" / f"000{n}.taken.json").read_text()) for n in (1, 2, 3)]
    assert taken[0]["step"] < taken[1]["step"] and "nothing.*" in taken[2]["refused"][0]
    assert [event["step"] for event in events(one, "refused")] == [taken[2]["step"]]

    dice = random.Random()
    for step in sorted(dice.sample(range(taken[1]["step"] - 2, taken[1]["step"] + 12), 2)):
        code, said = strike(there, after_step(step))
        assert code == -signal.SIGKILL, said
    assert tiny_run.run("resume", "runs/tiny", folder=there).code == 0
    assert differences(one, there / "runs" / "tiny") == []

    rows = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if row["split"] == "train"}
    at = taken[0]["step"]
    assert (steps[at]["examples"], steps[at + 1]["examples"]) == (16, 8) or steps[at]["examples"] > steps[at + 1]["examples"]
    assert steps[at + 1]["learning_rate"] == pytest.approx(3e-3)
    found = {row["pattern"] for event in events(one, "phase") for row in event["table"] if event["step"] == at}
    assert "layers.1.*" in found
    assert tiny_run.run("adjust", "runs/tiny", "stop=run", folder=here).code == 2  # it is done


def test_stop(tmp_path: Path):
    tiny_run.write_all(tmp_path)
    assert strike(tmp_path, after_step(4))[0] == -signal.SIGKILL
    assert tiny_run.run("adjust", "runs/tiny", "stop=run", folder=tmp_path).code == 0
    done = tiny_run.run("resume", "runs/tiny", "--json", folder=tmp_path)
    assert done.code == 0 and done.told["steps"] == events(tmp_path / "runs" / "tiny", "adjusted")[0]["step"]
    assert (tmp_path / "runs" / "tiny" / "export" / "config.json").is_file()


def test_a_branch_goes_on_from_the_best_checkpoint(trained: Trained, tmp_path: Path):
    folder = tiny_run.copy(trained.folder, tmp_path / "here")
    done = tiny_run.run("branch", "runs/tiny", "data.max_tokens=16", "data.widths=[16]", "phases.1.epochs=1", "--json", folder=folder)
    assert done.code == 0, done.stderr
    new = Path(done.told["run"])
    lineage = json.loads((new / "lineage.json").read_text())
    assert new.name == "tiny-branch" and lineage["changes"][0] == "data.max_tokens=16"
    assert (
        lineage["run"] == str(folder / "runs" / "tiny")
        and lineage["step"] == json.loads((trained.run / "result.json").read_text())["best_step"]
    )
    assert done.told["branched_from"]["parent_numbers"]["f1"] == json.loads((trained.run / "result.json").read_text())["test"]["f1"]
    first = next(json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines())
    began = next(json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] < began["loss"] / 1.5  # the head and the layers are those of the parent's best
    assert tiny_run.run("branch", "runs/tiny", "model.base=x", folder=folder).code == 2
