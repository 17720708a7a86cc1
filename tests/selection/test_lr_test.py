"""The range test runs the training's own steps: same losses as a run, one compilation, nothing left over from one training to the next."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from jaxtune.cli.main import main
from jaxtune.core.errors import ConfigError
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.prepare import prepare
from jaxtune.run_folder import RunFolder
from jaxtune.selection import batch_size
from jaxtune.selection.lr_test import lr_test, range_test
from jaxtune.selection.race import highest_rate
from jaxtune.selection.short_trainings import ShortTrainings
from jaxtune.session import Session, objective
from jaxtune.training.loop import Progress, Schedule, Stepped, train_phase
from jaxtune.training.state import TrainState

PLAIN = ["task.loss=cross_entropy", "data.augment=[]"]  # without the tiny experiment's stumbling and its own code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("lr_test")
    tiny_run.write_all(place)
    with contextlib.chdir(place):
        yield place


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    return load_experiment(folder / "tiny.yaml", PLAIN)


@pytest.fixture(scope="module")
def trainings(experiment: Experiment) -> ShortTrainings:
    """Of the second phase: averaged weights, layer-wise rates, part of the embeddings frozen."""
    return ShortTrainings(open_session(experiment), 1)


@pytest.fixture(scope="module")
def norms(trainings: ShortTrainings) -> Any:
    """Compiled once for all tests."""
    return batch_size.squared_norms(trainings)


def open_session(experiment: Experiment) -> Session:
    return Session.open(prepare(experiment), experiment.mesh.build())


def losses_of(trainings: ShortTrainings, seed: int, rates: list[float]) -> list[float]:
    with closing(trainings.train(seed, rates)) as course:
        return [step.loss for step in course]


def params_of(state: TrainState) -> dict[str, np.ndarray]:
    """Copies: on the CPU a fetched array may be the device's own memory."""
    return {key: np.array(value) for key, value in state.params.items()}


def head(trainings: ShortTrainings) -> np.ndarray:
    return np.array(
        next(value for key, value in trainings.stage.state.params.items() if key.startswith("head.") and key.endswith("kernel"))
    )


def test_the_steps_are_those_of_a_run(trainings: ShortTrainings, experiment: Experiment) -> None:
    """With the experiment's seed and the schedule's rates, the losses are bit-equal to those of the training loop."""
    session = open_session(experiment)
    stage = session.start_phase(1, *session.load_base(), None)
    fresh = params_of(stage.state)
    with session.feed("train", session.plan(1), stop=8, training=True) as feed:
        events = train_phase(stage.state, stage.step, feed, stage.controls, session.placement, Schedule(8), Progress())
        run = [event for event, _ in events if isinstance(event, Stepped)]
    ours = losses_of(trainings, experiment.seed, [event.learning_rate for event in run])
    assert ours == [event.loss for event in run]
    trainings.start(experiment.seed)
    for key, value in params_of(trainings.stage.state).items():
        np.testing.assert_array_equal(value, fresh[key], err_msg=key)


def test_every_training_starts_anew_and_seeds_change_order_head_and_dropout(trainings: ShortTrainings) -> None:
    rates = [1e-2] * 5
    first = losses_of(trainings, 3, rates)
    other = losses_of(trainings, 4, rates)
    assert losses_of(trainings, 3, rates) == first and first != other
    assert not np.array_equal(trainings.plan(3).batch(0).rows, trainings.plan(4).batch(0).rows)
    trainings.start(3)
    third = head(trainings)
    trainings.start(4)
    assert not np.allclose(third, head(trainings))
    assert not np.array_equal(*(jax.random.key_data(trainings.start(seed).key) for seed in (3, 4)))


def test_the_rate_alone_is_replaced(trainings: ShortTrainings) -> None:
    """Rate 0 leaves every parameter where it was, whatever the schedule says; the frozen ones never move."""
    trainings.start(3)
    before = params_of(trainings.stage.state)
    losses_of(trainings, 3, [0.0, 0.0])
    for key, value in params_of(trainings.stage.state).items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    frozen = set(trainings.stage.state.frozen)
    losses_of(trainings, 3, [1e-2])
    after = params_of(trainings.stage.state)
    assert frozen and all((after[key] == before[key]).all() for key in frozen)
    assert any((after[key] != before[key]).any() for key in after if key not in frozen)


def test_one_compilation_whatever_the_rates_and_seeds(trainings: ShortTrainings) -> None:
    trainings.start(5)
    size = trainings._copy._cache_size()
    measured = range_test(trainings, np.geomspace(1e-5, 10.0, 12), [3, 4, 5], lambda line: None)
    assert trainings.compilations == 1 and trainings._copy._cache_size() == size
    assert measured.losses.shape == (3, 12) and np.isfinite(measured.losses[:, 0]).all()


def test_a_broken_loss_ends_the_test(trainings: ShortTrainings) -> None:
    """Rates beyond all reason: the rest is not measured, and the last losses lie below what ended it."""
    before = trainings.steps
    measured = range_test(trainings, np.geomspace(1e-4, 1e6, 30), [3], lambda line: None)
    done = int(np.isfinite(measured.losses[0]).sum())
    assert measured.broke[0] and done < 29 and trainings.steps - before == done + 1
    assert np.isnan(measured.losses[0, done:]).all()


def test_the_race_measures_the_trained_parameters_on_validation(trainings: ShortTrainings) -> None:
    session, state = trainings.session, trainings.start(3)
    metrics, examples = trainings.evaluate()
    assert examples == len(session.prepared.splits["validation"])
    whole = session.evaluate("validation", trainings.stage.blueprint, state.params, state.variables)
    assert metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    losses_of(trainings, 3, [3e-3] * 40)
    assert trainings.evaluate()[0]["loss"] < 0.8 * metrics["loss"]


def test_squared_norms_are_those_of_plain_gradients(trainings: ShortTrainings, norms: Any) -> None:
    """Pieces and whole of one batch, dropout off by its rates, against jax.grad of the mean loss over the very rows."""
    state, session = trainings.start(3), trainings.session
    with session.feed("train", trainings.plan(3), stop=1, training=True) as feed:
        batch = next(feed).arrays
    none = session.placement.put({name: np.float32(0) for name in ("hidden", "attention", "head")})
    found = norms(state.trainable, state.frozen, state.variables, batch, session.placement.put(jax.random.key(0)), none)

    @jax.jit
    def plain(rows: Any) -> Any:
        def loss(trainable: Any) -> Any:
            return objective(
                session.prepared.task, trainings.stage.blueprint.build(trainable, state.frozen, state.variables), rows, None
            ).mean

        return sum(jnp.sum(value**2) for value in jax.tree.leaves(jax.grad(loss)(state.trainable)))

    host = jax.device_get(batch)
    pieces = [plain({name: value[number :: batch_size.PIECES] for name, value in host.items()}) for number in (0, 5)]
    np.testing.assert_allclose([found[0][0], found[0][5]], pieces, rtol=1e-3)
    np.testing.assert_allclose(found[1], plain(host), rtol=1e-3)


def test_the_largest_batch_is_compiled_and_never_run(trainings: ShortTrainings, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, here = len(trainings.session.prepared.splits["train"]), trainings.compilations
    found = batch_size.largest_batch(trainings)
    assert [fit.rows for fit in found.tried] == [16, 32, 64] and rows == 72 and found.rows == 64
    assert "more than the 72 of the training split" in found.ended
    needs = [fit.bytes for fit in found.tried]
    assert needs == sorted(needs) and needs[0] < needs[-1]
    monkeypatch.setattr(batch_size, "device_memory", lambda device: (needs[0] + needs[1]) // 2)
    tight = batch_size.largest_batch(trainings)
    assert tight.rows == 16 and [fit.fits for fit in tight.tried] == [True, False] and "32 rows would need" in tight.ended
    assert trainings.compilations == here


def test_the_noise_scale_is_measured_where_the_training_is(trainings: ShortTrainings, norms: Any) -> None:
    trainings.start(3)
    found = batch_size.noise_scale(trainings, norms, 3, 0)
    assert found.blocks >= 3 and found.after_steps == 0
    assert found.value is None or (found.low is not None and 0 <= found.low <= found.value)


def test_what_is_asked_for_must_be_there(experiment: Experiment) -> None:
    with pytest.raises(ConfigError) as caught:
        lr_test(experiment, phase=2, low=1e-3, high=1e-3, steps=3, seeds=0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["--phase", "--low, --high", "--steps", "--seeds"]


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything at once: the folder, the numbers, the plot, and an advice that is an experiment."""
    words = ["--phase", "1", "--low", "1e-4", "--high", "1", "--steps", "60", "--seeds", "2", "--race", "3", "--batch-sizes", "--json"]
    assert main(["lr-test", "tiny.yaml", *PLAIN, *words]) == 0
    told = json.loads(capsys.readouterr().out)
    place = folder / "runs" / "tiny-lr-test"
    assert Path(told["folder"]) == place and json.loads((place / "lr_test.json").read_text()) == told
    with pytest.raises(ConfigError, match="no run folder"):
        RunFolder.existing(place)
    assert told["compilations"] == 1 and told["steps"] >= 120 and np.array(told["measured"]["losses"], dtype=object).shape == (2, 60)
    assert told["reading"]["fall"] > 0.1 and told["reading"]["rate"] is not None
    assert told["race"]["steps"] == 40 and 3 <= len(told["race"]["racers"]) <= 5 and told["race"]["examples"] == 24
    assert len(told["batches"]["scales"]) == 2 and told["batches"]["largest"]["rows"] == 64
    rate = told["advice"]["rate"]
    changed = load_experiment(folder / "tiny.yaml", [*PLAIN, *told["advice"]["overrides"]])
    assert highest_rate(changed.phases[1].optimizer.schedule, 45) == rate and 1e-4 < rate < 1
    drawn = ElementTree.fromstring((place / "plots" / "lr_test.svg").read_text())
    assert told["advice"]["sentence"] in drawn.attrib["aria-label"]


def test_people_read_the_advice_last(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--low", "1e-5", "--high", "10", "--steps", "20", "--seeds", "1", "--race", "0"]
    assert main(["lr-test", "tiny.yaml", *PLAIN, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "phase 0 of tiny: 20 steps from 1.0e-05 to 1.0e+01, 1 seed"
    assert lines[1].startswith("step of 16 rows x 20 tokens compiled in ") and lines[2].startswith("seed 3: loss ")
    assert any("Each seed passed 4.0 times over the training split" in line for line in lines)
    assert any("the step was compiled once" in line for line in lines)
    assert any("range test" in line for line in lines[-8:]) and lines[-1].startswith("plot ")
    assert not any("nan" in line for line in lines)
