"""What a training step costs in memory work: MiniLM at 32 x 256 in a real run, with the C library's defaults and as the commands ask for.

For each way, in a process of its own and in alternating order: wall time, processor time of the program and of the kernel, page faults of a
step, and the peak of resident memory.

    .venv/bin/python benchmarks/step_memory.py [--steps 30 --rounds 2]   -> benchmarks/results/step_memory.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
HERE = Path(__file__).parent
RESULT = HERE / "results" / "step_memory.json"
WARM = 6  # first steps, which are not counted


def ways() -> dict[str, str]:
    from jaxtune.cli.process import HUGE_PAGES
    from jaxtune.core.heap import KEEPS

    return {"C library's defaults": "", "huge pages": HUGE_PAGES, "huge pages, heap kept": f"{HUGE_PAGES}:{KEEPS}"}


def one(rows: int, tokens: int, steps: int) -> dict[str, Any]:
    """In a process of its own: medians and sums over the steps of a run."""
    sys.path.insert(0, str(HERE))
    from encoder.run_jaxtune import experiment_of

    import jaxtune
    from jaxtune.training.loop import Stepped

    told: list[tuple[float, ...]] = []

    def watch(event: Any) -> None:
        if isinstance(event, Stepped):
            used = resource.getrusage(resource.RUSAGE_SELF)
            told.append((time.perf_counter(), used.ru_utime, used.ru_stime, used.ru_minflt))

    with tempfile.TemporaryDirectory() as folder:
        extra = ("phases.0.epochs=null", f"phases.0.steps={steps}")
        jaxtune.run(experiment_of(batch=rows, max_tokens=tokens, extra=extra), runs_dir=folder, watch=watch)
    each = [tuple(b - a for a, b in zip(before, after, strict=True)) for before, after in zip(told[WARM:], told[WARM + 1 :], strict=False)]
    seconds, program, kernel, faults = zip(*each, strict=True)
    return {
        "seconds": [round(s, 3) for s in seconds],
        "mean_seconds": statistics.mean(seconds),
        "program_cpu_seconds": statistics.mean(program),
        "kernel_cpu_seconds": statistics.mean(kernel),
        "faults": statistics.mean(faults),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "tokens", "steps")]
    if options.one:
        print(json.dumps(one(options.rows, options.tokens, options.steps)))
        return
    settings = ways()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in settings}
    for number in range(options.rounds):
        for way in list(settings)[:: 1 if number % 2 == 0 else -1]:
            kept = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
            own = {"GLIBC_TUNABLES": settings[way]} if settings[way] else {}
            command = [sys.executable, __file__, "--one", *sizes]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=kept | {"PYTHONPATH": str(HERE.parent)} | own)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, {name: value for name, value in found[way][-1].items() if name != "seconds"}, flush=True)
    write(options, found)


def write(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """The table that the documentation shows, and the runs behind it."""

    def mean(way: str, name: str) -> float:
        return statistics.mean(run[name] for run in found[way])

    rows = [
        (
            way,
            f"{mean(way, 'mean_seconds'):.2f} ({', '.join(f'{run["mean_seconds"]:.2f}' for run in runs)})",
            f"{mean(way, 'program_cpu_seconds'):.2f}",
            f"{mean(way, 'kernel_cpu_seconds'):.2f}",
            f"{mean(way, 'faults'):,.0f}",
            f"{mean(way, 'peak_gib'):.1f}",
        )
        for way, runs in found.items()
    ]
    date, command = datetime.date.today().isoformat(), f"benchmarks/step_memory.py --steps {options.steps} --rounds {options.rounds}"
    table = {
        "title": "A step's memory",
        "columns": ("way", "seconds a step (rounds)", "processor, program", "processor, kernel", "page faults", "peak GiB"),
        "rows": rows,
        "note": f"MiniLM, all parameters, {options.rows} x {options.tokens} in bfloat16, means over the steps of a run after the first {WARM}; "
        f"{os.cpu_count()} CPU cores, {date}; `.venv/bin/python {command}`.",
    }
    RESULT.write_text(json.dumps({"date": date, "command": command, "table": table, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
