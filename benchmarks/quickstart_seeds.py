"""The quickstart as a person runs it: `jaxtune train configs/quickstart.yaml` with several seeds, each with empty caches, timed as a whole.

    .venv/bin/python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [key=value ...]   -> benchmarks/results/quickstart_seeds.json

The seed decides head, dropout and the order of the batches; the split (its own seed) stays, so the spread is that of training alone. With
overrides nothing is written: that is how the recipe was chosen, by the validation numbers.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"


def one(seed: int, overrides: list[str], folder: Path, runs: Path) -> dict[str, Any]:
    """One command in a process of its own; its numbers, its seconds and its largest resident memory."""
    command = [sys.executable, "-m", "jaxtune", "train", "configs/quickstart.yaml", f"seed={seed}", *overrides]
    command += ["--runs-dir", str(runs), "--name", f"seed-{seed}", "--json"]
    environment = os.environ | {"JAXTUNE_CACHE": str(folder / f"cache-{seed}"), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"seed {seed}: {told}")
    numbers = json.loads(told)
    kept = {
        name: numbers[name] for name in ("steps", "best_step", "seconds", "examples_per_second", "tokens_per_second", "compile_seconds")
    }
    chosen = {split: {name: numbers[split][name] for name in ("accuracy", "f1", "loss")} for split in ("validation", "test")}
    return {"seed": seed, "command_seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20, "training": kept, **chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, help="keep the run folders here")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            found.append(one(seed, options.overrides, Path(folder), options.runs_dir or Path(folder) / "runs"))
            print(json.dumps(found[-1]), f"(load {os.getloadavg()[0]:.1f})", flush=True)
    accuracy = [run["test"]["accuracy"] for run in found]
    print(f"test accuracy: mean {statistics.mean(accuracy):.4f}, {min(accuracy):.4f} to {max(accuracy):.4f}")
    if not options.overrides:
        write(found)


def write(found: list[dict[str, Any]]) -> None:
    def span(values: list[float], form: str) -> str:
        return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    columns = {
        "test accuracy": ([run["test"]["accuracy"] for run in found], ".4f"),
        "test F1": ([run["test"]["f1"] for run in found], ".4f"),
        "validation F1": ([run["validation"]["f1"] for run in found], ".4f"),
        "steps": ([run["training"]["steps"] for run in found], ".0f"),
        "whole command, s": ([run["command_seconds"] for run in found], ".0f"),
        "peak memory, GiB": ([run["peak_gib"] for run in found], ".2f"),
    }
    rows = [[str(run["seed"]), *(f"{values[i]:{form}}" for values, form in columns.values())] for i, run in enumerate(found)]
    rows.append(["mean (lowest to highest)", *(span(values, form) for values, form in columns.values())])
    date = datetime.date.today().isoformat()
    machine = {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()}
    table = {
        "title": "The quickstart, three seeds",
        "columns": ["seed", *columns],
        "rows": rows,
        "note": f"Same split each time, empty caches; 2 CPU cores, {date}; `.venv/bin/python benchmarks/quickstart_seeds.py`.",
    }
    RESULT.write_text(json.dumps({"date": date, "machine": machine, "runs": found, "table": table}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
