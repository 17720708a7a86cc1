"""`jaxtune lr-test X.yaml`: a learning rate for a phase, and a batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.experiment import load_experiment
from jaxtune.selection.lr_test import LrTest
from jaxtune.selection.lr_test import lr_test as test_rates
from jaxtune.selection.race import Race


def run(
    output: Output, experiment: Path, overrides: list[str], phase: int, low: float, high: float, steps: int, seeds: int, race: int,
    batch_sizes: bool, runs_dir: str,
) -> dict[str, Any]:  # fmt: skip
    loaded = load_experiment(experiment, overrides)
    output.say(f"phase {phase} of {loaded.name}: {steps} steps from {low:.1e} to {high:.1e}, {seeds} {'seed' if seeds == 1 else 'seeds'}")
    if phase:
        output.say(f"It starts from the base model: the {'phase' if phase == 1 else f'{phase} phases'} before it skipped.")
    found = test_rates(
        loaded,
        phase=phase,
        low=low,
        high=high,
        steps=steps,
        seeds=seeds,
        race=race,
        batches=batch_sizes,
        runs_dir=runs_dir,
        told=output.say,
    )
    show(output, found)
    return found.to_json()


def show(output: Output, found: LrTest) -> None:
    """The readings, the race, the batch sizes, and the advice last."""
    reading = found.reading
    programs = "once" if found.compilations == 1 else f"for {found.compilations} batch widths"
    output.say(f"{found.steps} steps in {found.seconds:.0f} s; the step was compiled {programs} ({found.compile_seconds:.0f} s)")
    if found.measured.epochs > 1:
        output.say(
            f"Each seed passed {found.measured.epochs:.1f} times over the training split: the later losses are of examples already seen."
        )
    output.say()
    own = [rate for rate in reading.seeds if rate is not None]
    spread = f"each seed alone: {', '.join(f'{rate:.1e}' for rate in own)}" if len(reading.seeds) > 1 and own else ""
    rows = [
        ("steepest fall of the loss", rate_or_dash(reading.steepest), ""),
        ("lowest loss (largest stable rate)", rate_or_dash(reading.largest_stable), f"a tenth: {reading.largest_stable / 10:.1e}" if reading.largest_stable else ""),
        ("range test", rate_or_dash(reading.rate) if reading.clear else "no clear answer", spread),
    ]  # fmt: skip
    output.table(rows)
    if found.race is not None:
        output.say()
        show_race(output, found.race)
    if found.batches is not None:
        output.say()
        for sentence in found.batches.sentences:
            output.say(sentence)
    output.say()
    output.say(found.advice.sentence[0].upper() + found.advice.sentence[1:] + ".")
    for word in found.advice.overrides:
        output.say(f"  {word}")
    if found.folder is not None:
        output.say(f"plot    {found.folder / 'plots' / 'lr_test.svg'}")


def show_race(output: Output, race: Race) -> None:
    """One row a rate; the last column judges the differences to the lowest, seed by seed."""
    rows = []
    for racer in race.racers:
        mean = f"{racer.mean:.4g}" if racer.mean < float("inf") else "broke"
        alive = [loss for loss in racer.losses if loss < float("inf")]
        seeds = f"{min(alive):.3g} to {max(alive):.3g}" if len(alive) > 1 else ""
        rank = "lowest" if racer.rate == race.best else "clearly higher" if racer.clearly else "within noise of the lowest"
        rows.append((f"{racer.rate:.1e}", mean, seeds, rank))
    head = ("rate", "validation loss", "over seeds", f"after {race.steps} steps, {race.examples} examples")
    output.table(rows, head=head)


def rate_or_dash(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1e}"
