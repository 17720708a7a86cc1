"""Does lr-test suggest a good rate? BBC News with MiniLM: its suggestion against the best of a sweep of whole, short runs.

    .venv/bin/python benchmarks/lr_test_bbc.py [--steps 48] [--seeds 2]

The test and the sweep share the experiment alone: the sweep's runs are `jaxtune.run`, each with its own folder, and are judged by the
validation loss of the run's best checkpoint, averaged over seeds that the test has not seen. Prints a table and writes
benchmarks/results/lr_test_bbc.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from jaxtune.experiment import Experiment, load_experiment
from jaxtune.run import run
from jaxtune.selection.lr_test import LrTest, lr_test

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "lr_test_bbc.json"
RATES = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
WITHIN = 3.0


def experiment_with(steps: int, *more: str) -> Experiment:
    """The quickstart, smaller: short texts, small batches, everything trained in one phase."""
    phase = (
        f'phases=[{{train: ["*"], steps: {steps}, optimizer: {{kind: adamw, weight_decay: 0.01, layer_decay: 0.9, '
        "schedule: {kind: cosine, peak: 1.0e-4, warmup: 0.1}}}]"
    )
    small = [
        "data.max_tokens=64",
        "data.widths=[64]",
        "data.batch_size=16",
        f"evaluation.every_steps={steps}",
        f"checkpoint.every_steps={steps}",
    ]
    return load_experiment(ROOT / "configs" / "quickstart.yaml", ["name=lr-test-bbc", phase, *small, *more])


def sweep(steps: int, seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Every rate with every seed, each a whole run."""
    rows = []
    for rate in RATES:
        losses, scores = [], []
        for seed in range(100, 100 + seeds):
            began = time.perf_counter()
            try:
                found = run(experiment_with(steps, f"phases.0.optimizer.schedule.peak={rate:.1e}", f"seed={seed}"), runs_dir=runs)
                losses.append(float(found.validation["loss"]))
                scores.append(float(found.validation["f1"]))
            except Exception as error:
                print(f"rate {rate:.1e} seed {seed}: {type(error).__name__}: {error}", flush=True)
                losses.append(math.inf)
                scores.append(0.0)
            print(
                f"rate {rate:.1e} seed {seed}: loss {losses[-1]:.4f}, f1 {scores[-1]:.4f} ({time.perf_counter() - began:.0f} s)", flush=True
            )
        rows.append({"rate": rate, "losses": losses, "f1": scores, "loss": statistics.fmean(losses), "f1_mean": statistics.fmean(scores)})
    return rows


def apart(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def result_of(found: LrTest, rows: list[dict[str, Any]], steps: int, seconds: dict[str, float], before: dict[str, Any]) -> dict[str, Any]:
    best = min(rows, key=lambda row: row["loss"])
    suggested, advised = found.reading.rate, found.advice.rate
    factor = None if advised is None else apart(advised, best["rate"])
    shown = [
        [f"{row['rate']:.1e}", f"{row['loss']:.3f}", f"{min(row['losses']):.3f} to {max(row['losses']):.3f}", f"{row['f1_mean']:.3f}", "lowest" if row is best else ""]
        for row in rows
    ]  # fmt: skip
    raced = "none" if found.race is None or found.race.best is None else f"{found.race.best:.1e}"
    words = "gave no clear answer" if advised is None else f"advises {advised:.1e}, {factor:.2g} times from the best of the sweep"
    note = (
        f"lr-test {words} (range test {'-' if suggested is None else f'{suggested:.1e}'}, race {raced}). It took {found.steps} steps and "
        f"{seconds['lr_test']:.0f} s with {found.compilations} compiled step; the sweep {len(rows) * len(rows[0]['losses']) * steps} steps and "
        f"{seconds['sweep']:.0f} s. MiniLM, everything trained, {steps} steps of 16 x 64 tokens, cosine with warm-up; validation loss of whole "
        f"runs, mean of {len(rows[0]['losses'])} seeds. {datetime.now(UTC).date()}, {before['processor']}, {before['cores']} cores, jax {jax.__version__}."
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": before,
        "suggested": suggested,
        "advised": advised,
        "agree": found.advice.agree,
        "best_of_sweep": best["rate"],
        "factor": factor,
        "within_3": factor is not None and factor <= WITHIN,
        "seconds": seconds,
        "sweep": rows,
        "lr_test": {"sentence": found.advice.sentence, "seeds": found.reading.seeds, "steepest": found.reading.steepest, "largest_stable": found.reading.largest_stable,
                    "race": None if found.race is None else [[racer.rate, racer.mean] for racer in found.race.racers]},
        "table": {
            "title": "lr-test against a sweep: BBC News, MiniLM",
            "columns": ["rate", "validation loss", "seeds", "F1", ""],
            "rows": shown,
            "note": note,
        },
    }  # fmt: skip


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
    given = parser.parse_args()
    before, seconds = machine(), {}
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        found = lr_test(experiment_with(given.steps), seeds=given.seeds, runs_dir=place, told=lambda line: print(line, flush=True))
        seconds["lr_test"] = time.perf_counter() - began
        print(found.advice.sentence, flush=True)
        began = time.perf_counter()
        rows = sweep(given.steps, given.seeds, Path(place))
        seconds["sweep"] = time.perf_counter() - began
    result = result_of(found, rows, given.steps, seconds, before)
    print(f"\n{result['table']['title']}")
    for row in (result["table"]["columns"], *result["table"]["rows"]):
        print("  ".join(f"{cell:<18}" for cell in row).rstrip())
    print(result["table"]["note"])
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"within {WITHIN:g} times: {result['within_3']}; written to {RESULT}")


if __name__ == "__main__":
    main()
