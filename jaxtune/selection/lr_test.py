"""A learning rate for a phase: a range test (Smith 2017) on its real step, batches and optimizer, and a short race as second opinion.

Everything runs through the compiled step of the phase: the rate is one of its traced scalars, so rates and seeds compile nothing anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.config.write import to_yaml
from jaxtune.core.errors import ConfigError
from jaxtune.evaluation import charts
from jaxtune.experiment import Experiment
from jaxtune.parallel import hosts
from jaxtune.prepare import prepare
from jaxtune.reference import add_read
from jaxtune.run_folder import RunFolder, runs_folder
from jaxtune.selection.batch_size import BatchSizes, batch_sizes
from jaxtune.selection.lr_advice import Advice, advise
from jaxtune.selection.lr_plot import plot
from jaxtune.selection.race import FACTOR, Race, pressed, rates_around, run_race
from jaxtune.selection.rate_rule import Reading, Smoothed, reached, read, smooth
from jaxtune.selection.short_trainings import ShortTrainings
from jaxtune.session import Compiled, Session

BROKEN = 4.0  # a test ends when the running loss is so many times its lowest
MEMORY = 0.8  # of the running loss, from step to step

Told = Callable[[str], None]


@dataclass(frozen=True)
class RangeTest:
    """What was measured.

    Attributes:
        rates: f64[n]; losses: f64[seeds, n], NaN after a seed's test was stopped.
        broke: bool[seeds], whether it was stopped because the loss broke.
        curve: the smoothed losses over the rates that all seeds reached; None when those are too few.
        epochs: passes over the training split that one seed's whole test makes.
    """

    seeds: tuple[int, ...]
    rates: np.ndarray
    losses: np.ndarray
    broke: np.ndarray
    curve: Smoothed | None
    epochs: float


@dataclass(frozen=True)
class LrTest:
    """
    Attributes:
        phase: number of the phase that was tested, from the base model; the phases before it were left out.
        reading: what the range test says; `race`: the second opinion, None when there was none (`no_race` tells why).
        advice: the rate to take, as overrides of the experiment.
        compilations: programs of the training step, for all `steps` steps of all trainings.
        folder: where lr_test.json and plots/lr_test.svg lie; None when nothing was to be written.
    """

    phase: int
    measured: RangeTest
    reading: Reading
    race: Race | None
    no_race: str
    batches: BatchSizes | None
    advice: Advice
    compilations: int
    compile_seconds: float
    steps: int
    seconds: float
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As lr_test.json holds it."""
        found = asdict(self)
        found["reading"]["clear"] = self.reading.clear
        return {**found, "folder": None if self.folder is None else str(self.folder)}


def lr_test(
    experiment: Experiment,
    *,
    phase: int = 0,
    low: float = 1e-6,
    high: float = 1e-1,
    steps: int = 60,
    seeds: int = 3,
    race: int = 4,
    race_steps: int = 40,
    batches: bool = False,
    runs_dir: str | Path | None = "runs",
    told: Told = lambda line: None,
) -> LrTest:
    """Looks for the learning rate of one phase.

    Every training starts from the base model; for a later phase, the earlier ones are skipped.

    Args:
        low, high: rates of the first and the last step of the range test; they rise by the same factor from step to step.
        seeds: how often it is repeated, with another order of the data, another fresh head and other dropout.
        race: so many rates around the suggestion are also trained for `race_steps` steps each, per seed; 0: none.
        batches: also look for the largest batch that fits and the useful one.
        runs_dir: where the folder `<runs_dir>/<name>-lr-test` is made; None writes nothing.
        told: is given a line for every part that is done.

    Raises:
        ConfigError, DataError: before anything is trained or written.
    """
    check(experiment, phase, low, high, steps, seeds, race, race_steps)
    place = None if runs_dir is None else runs_folder(runs_dir)
    hosts.start()
    began = time.perf_counter()
    session = Session.open(prepare(experiment), experiment.mesh.build())
    session.check()
    add_read(session)
    trainings = ShortTrainings(session, phase)
    told(step_line(trainings.compiled))
    folder = None if place is None else RunFolder.create(place, f"{experiment.name}-lr-test")
    with folder or nullcontext():
        if folder is not None:
            folder.write("experiment.yaml", to_yaml(experiment))
            prepared = session.prepared
            folder.write_environment([str(d) for d in jax.devices()], data=prepared.fingerprint, licence=prepared.base.licence)
        chosen = [experiment.seed + number for number in range(seeds)]
        measured = range_test(trainings, np.geomspace(low, high, steps), chosen, told)
        reading = read(measured.rates, measured.losses, measured.broke)
        raced, no_race = second_opinion(trainings, reading, race, chosen, race_steps, told)
        schedule = experiment.phases[phase].optimizer.schedule
        advice = advise(reading, raced, no_race, schedule, phase, trainings.total)
        sizes = None
        if batches:
            shape = pressed(schedule, trainings.total, min(race_steps, trainings.total))
            sizes = batch_sizes(trainings, experiment.seed, None if advice.rate is None else [advice.rate * share for share in shape])
            told("batch sizes measured")
        found = LrTest(
            phase, measured, reading, raced, no_race, sizes, advice, trainings.compilations, trainings.compile_seconds,
            trainings.steps, time.perf_counter() - began, None if folder is None else folder.path,
        )  # fmt: skip
        if folder is not None:
            folder.write_json("lr_test.json", found.to_json())
            (folder.path / "plots").mkdir(exist_ok=True)
            folder.write("plots/lr_test.svg", charts.alone(plot(measured, reading, raced, advice)))
    return found


def step_line(step: Compiled) -> str:
    width = "" if step.width is None else f" x {step.width} tokens"
    return f"step of {step.rows} rows{width} compiled in {step.seconds:.1f} s, {step.memory.peak / 2**20:,.0f} MiB"


def range_test(trainings: ShortTrainings, rates: np.ndarray, seeds: Sequence[int], told: Told) -> RangeTest:
    """The range test of every seed; one ends early when its loss breaks: not finite, or its running mean BROKEN times its lowest."""
    losses, broke = np.full((len(seeds), len(rates)), math.nan), np.zeros(len(seeds), bool)
    for row, seed in enumerate(seeds):
        began, running, weight, lowest = time.perf_counter(), 0.0, 0.0, math.inf
        with closing(trainings.train(seed, rates.tolist())) as course:
            for number, step in enumerate(course):
                running, weight = MEMORY * running + step.loss, MEMORY * weight + 1.0
                mean = running / weight
                lowest = min(lowest, mean)
                if not step.finite or not math.isfinite(step.loss) or mean > lowest + (BROKEN - 1.0) * abs(lowest):
                    broke[row] = True
                    break
                losses[row, number] = step.loss
        done = int(np.isfinite(losses[row]).sum())
        end = f"broke at {rates[done]:.1e}" if broke[row] else f"up to {rates[-1]:.1e}"
        first = f"loss {losses[row, 0]:.3g}" if done else "no finite loss"
        told(f"seed {seed}: {first}, lowest running mean {lowest:.3g}, {end} ({done} steps, {time.perf_counter() - began:.0f} s)")
    curve = smooth(rates, losses) if reached(losses) >= 5 else None
    return RangeTest(tuple(seeds), rates, losses, broke, curve, len(rates) / trainings.plan(seeds[0]).steps())


def second_opinion(
    trainings: ShortTrainings, reading: Reading, count: int, seeds: Sequence[int], steps: int, told: Told
) -> tuple[Race | None, str]:
    """(the race, or why there is none)."""
    if not count:
        return None, "no race was asked for"
    if "validation" not in trainings.session.prepared.splits:
        return None, "there is no validation split to race for"
    if reading.rate is None:
        return None, "the range test names no rate to race around"
    return run_race(trainings, rates_around(reading.rate, count), seeds, steps, told), ""


def check(experiment: Experiment, phase: int, low: float, high: float, steps: int, seeds: int, race: int, race_steps: int) -> None:
    """Raises:
    ConfigError: arguments that name nothing or leave nothing to measure; all of them.
    """
    problems = []
    if not 0 <= phase < len(experiment.phases):
        problems.append(f"--phase: found {phase}; the experiment has the phases 0 to {len(experiment.phases) - 1}")
    if not (math.isfinite(low) and math.isfinite(high) and low > 0 and low * FACTOR <= high):
        problems.append(
            f"--low, --high: found {low:g} and {high:g}; expected rates above 0, the higher at least {FACTOR:.1f} times the lower"
        )
    least = {"--steps": (steps, 10), "--seeds": (seeds, 1), "--race": (race, 0), "race_steps": (race_steps, 1)}
    problems += [f"{name}: found {value}; expected at least {floor}" for name, (value, floor) in least.items() if value < floor]
    if problems:
        raise ConfigError(problems)
