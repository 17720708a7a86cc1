"""Does lr-test suggest a good rate? BBC News with MiniLM: its suggestion against the best of a sweep of whole, short runs.

    .venv/bin/python benchmarks/lr_test_bbc.py [--steps 48] [--seeds 2] [--quick]

The test and the sweep share the experiment alone: the sweep's runs are `jaxtune.run`, each with its own folder and its whole schedule, and
are judged by their validation loss, averaged over seeds that the test has not seen. Prints a table and writes
benchmarks/results/lr_test_bbc.json after every rate, so that a sweep that is cut short leaves what it measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxtune.core.errors import DivergedError
from jaxtune.core.files import plain
from jaxtune.experiment import Experiment, load_experiment
from jaxtune.run import run
from jaxtune.selection.lr_test import LrTest, lr_test

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "lr_test_bbc.json"
RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
WITHIN = 3.0
FIRST_SEED = 100  # of the sweep: none of the test's
ROWS, WIDTH = 16, 64


def experiment_with(steps: int, *more: str) -> Experiment:
    """The quickstart, smaller: short texts, small batches, everything trained in one phase."""
    schedule = "{kind: cosine, peak: 1.0e-4, warmup: 0.1}"
    small = [
        "name=lr-test-bbc",
        f'phases=[{{train: ["*"], steps: {steps}, optimizer: {{kind: adamw, weight_decay: 0.01, schedule: {schedule}}}}}]',
        f"data.max_tokens={WIDTH}",
        f"data.widths=[{WIDTH}]",
        f"data.batch_size={ROWS}",
        "data.split.test=0.05",
        "evaluation={predictions: false, slices: false, label_check: false, near_duplicates: false}",
        f"checkpoint.every_steps={steps}",
    ]
    return load_experiment(ROOT / "configs" / "quickstart.yaml", [*small, *more])


def sweep_one(rate: float, steps: int, seeds: int, runs: Path) -> dict[str, Any]:
    """One rate with every seed, each a whole run; a run that diverges has the loss infinity."""
    losses, scores = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        began = time.perf_counter()
        try:
            found = run(experiment_with(steps, f"phases.0.optimizer.schedule.peak={rate:.1e}", f"seed={seed}"), runs_dir=runs)
            losses.append(float(found.validation["loss"]))
            scores.append(float(found.validation["f1"]))
        except DivergedError:
            losses.append(math.inf)
            scores.append(0.0)
        shutil.rmtree(runs)
        seconds = time.perf_counter() - began
        print(f"rate {rate:.1e} seed {seed}: loss {losses[-1]:.4f}, F1 {scores[-1]:.4f} ({seconds:.0f} s)", flush=True)
    return {"rate": rate, "losses": losses, "f1": scores, "loss": statistics.fmean(losses), "f1_mean": statistics.fmean(scores)}


def apart(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def result_of(found: LrTest, rows: list[dict[str, Any]], steps: int, seconds: dict[str, float], before: dict[str, Any]) -> dict[str, Any]:
    """What is written: without a verdict and a table while rates of the sweep are missing."""
    race = None if found.race is None else [[racer.rate, racer.mean] for racer in found.race.racers]
    told: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": before,
        "complete": len(rows) == len(RATES),
        "advised": found.advice.rate,
        "agree": found.advice.agree,
        "sentence": found.advice.sentence,
        "range_test": {"rate": found.reading.rate, "reasons": found.reading.reasons, "seeds": found.reading.seeds,
                       "steepest": found.reading.steepest, "largest_stable": found.reading.largest_stable},
        "race": race,
        "steps": found.steps,
        "compilations": found.compilations,
        "seconds": seconds,
        "sweep": rows,
    }  # fmt: skip
    if not told["complete"]:
        return told
    best = min(rows, key=lambda row: row["loss"])
    factor = None if found.advice.rate is None else apart(found.advice.rate, best["rate"])
    told |= {"best_of_sweep": best["rate"], "factor": factor, "within_3": factor is not None and factor <= WITHIN}
    return {**told, "table": table(found, rows, best, factor, steps, seconds, before)}


def table(
    found: LrTest, rows: list[dict[str, Any]], best: dict[str, Any], factor: float | None, steps: int, seconds: dict[str, float], before: dict[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """For the documentation."""
    shown = [
        [f"{row['rate']:.1e}", f"{row['loss']:.3f}", f"{min(row['losses']):.3f} to {max(row['losses']):.3f}", f"{row['f1_mean']:.3f}", "lowest" if row is best else ""]
        for row in rows
    ]  # fmt: skip
    seeds = len(best["losses"])
    suggested = "-" if found.reading.rate is None else f"{found.reading.rate:.1e}{'' if found.reading.clear else ', not clear'}"
    raced = "none" if found.race is None or found.race.best is None else f"{found.race.best:.1e}"
    words = "gave no answer" if factor is None else f"advises {found.advice.rate:.1e}, {factor:.2g} times from the best of the sweep"
    note = (
        f"lr-test {words} (range test {suggested}; race {raced}). It took {found.steps} steps and {seconds['lr_test']:.0f} s with "
        f"{found.compilations} compiled step{'s' * (found.compilations != 1)}; the sweep {len(rows) * seeds * steps} steps and {seconds['sweep']:.0f} s. "
        f"MiniLM, everything trained, {steps} steps of {ROWS} x {WIDTH} tokens, AdamW, cosine with warm-up; validation loss of whole runs, mean of {seeds} "
        f"seeds (`benchmarks/lr_test_bbc.py`, {datetime.now(UTC):%Y-%m-%d}, {before['processor']}, {before['cores']} cores, jax {before['jax']})."
    )
    columns = ["rate", "validation loss", "seeds", "F1", ""]
    return {"title": "lr-test against a sweep: BBC News, MiniLM", "columns": columns, "rows": shown, "note": note}


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "jax": jax.__version__,
        "python": platform.python_version(), "load_average": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=48, help="of every run of the sweep")
    parser.add_argument("--seeds", type=int, default=2, help="of the sweep, and of the test")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs; writes nothing")
    given = parser.parse_args()
    steps, seeds = (6, 1) if given.quick else (given.steps, given.seeds)
    before, seconds, rows = machine(), {}, []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="jaxtune-lr-test-") as place:
        began = time.perf_counter()
        small: dict[str, Any] = {"steps": 12, "race": 2, "race_steps": 4} if given.quick else {}
        found = lr_test(experiment_with(steps), seeds=seeds, runs_dir=place, told=lambda line: print(line, flush=True), **small)
        seconds["lr_test"] = time.perf_counter() - began
        print(f"{found.advice.sentence} ({seconds['lr_test']:.0f} s)", flush=True)
        began = time.perf_counter()
        for rate in RATES:
            rows.append(sweep_one(rate, steps, seeds, Path(place) / "sweep"))
            seconds["sweep"] = time.perf_counter() - began
            result = result_of(found, rows, steps, seconds, before)
            if not given.quick:
                RESULT.parent.mkdir(exist_ok=True)
                RESULT.write_text(json.dumps(plain(result), indent=2) + "\n", encoding="utf-8")
    print(f"\n{result['table']['title']}")
    for row in (result["table"]["columns"], *result["table"]["rows"]):
        print("  ".join(f"{cell:<18}" for cell in row).rstrip())
    print(result["table"]["note"])
    print(f"within {WITHIN:g} times: {result['within_3']}; {'nothing written' if given.quick else f'written to {RESULT}'}")


if __name__ == "__main__":
    main()
