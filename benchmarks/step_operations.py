"""Where a real training step's time goes, operation by operation, with memory in small pages and in huge ones.

The step is the one that `jaxtune train` runs (MiniLM-L6 on BBC News, all parameters, AdamW, dropout), compiled once, called in a process per
way, in alternating order. Operations are named by jax's profiler and summed by what they are for; a step under the profiler is slower.

    .venv/bin/python benchmarks/step_operations.py [--rows 32 --tokens 128 --dtype bfloat16]   -> benchmarks/results/step_operations.json
"""

from __future__ import annotations

import argparse
import collections
import datetime
import glob
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
HERE = Path(__file__).parent
RESULT = HERE / "results" / "step_operations.json"
WAYS = ("pages of 4 KiB", "huge pages, as the commands ask for")
# (what it is for, pattern of the operation's name in the program); the first that fits counts
KINDS = (
    ("products of dense layers", r"XY[IO],.*dot_general"),
    ("attention", r"_attend"),
    ("gelu", r"gelu"),
    ("layer norm", r"_fast_forward|_fast_backward|norm"),
    ("dropout", r"_apply"),
    ("embeddings", r"_take|take"),
    ("optimizer, clipping, finite check", r"jit\(_where\)/select_n|optimizer|\bdiv\b|\bmul\b|\bsub\b|sqrt|square|pow"),
    ("biases, transposes, the rest", r""),
)


def one(rows: int, tokens: int, dtype: str, steps: int) -> dict[str, Any]:
    """In a process of its own: seconds, page faults and memory of a step, and its operations."""
    sys.path.insert(0, str(HERE))
    from jaxtune.parallel import hosts

    hosts.start()
    import jax
    import numpy as np
    from encoder.run_jaxtune import experiment_of

    from jaxtune.data.batch import collate
    from jaxtune.prepare import prepare
    from jaxtune.session import Session

    experiment = experiment_of(batch=rows, max_tokens=tokens, extra=(f"model.dtype={dtype}",))
    session = Session.open(prepare(experiment), experiment.mesh.build())
    stage = session.start_phase(0, *session.load_base(), None)
    examples = session.prepared.splits["train"]
    longest = np.argsort(-examples.lengths, kind="stable")[:rows]
    batch = session.placement.put_batch(collate([examples.row(int(i)) for i in longest], tokens))
    controls = session.placement.put(stage.controls(5, 1.0))
    program, state = stage.step.prepare(stage.state, batch, controls), stage.state
    seconds, faults = [], []
    for _ in range(steps):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        state, _ = program(state, batch, controls)
        jax.block_until_ready(state.trainable)
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    warm = steps // 3
    found = {
        "seconds": seconds[warm:],
        "faults": int(np.median(faults[warm:])),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "temporaries_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
        "gflop": stage.step.flops[next(iter(stage.step.flops))] / 1e9,
    }
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                state, _ = program(state, batch, controls)
                jax.block_until_ready(state.trainable)
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        found["milliseconds"] = operations(jax.profiler.ProfileData.from_file(file), program.as_text(), 3)
    return found


def operations(profile: Any, program: str, steps: int) -> dict[str, float]:
    """Milliseconds a step by kind, summed over the two cores' lines as the profiler tells them."""
    names = {}
    for line in program.splitlines():
        if found := re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', line):
            names[found[1]] = found[2]
    total: dict[str, float] = collections.Counter()
    for plane in profile.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in names:
                    kind = next(kind for kind, pattern in KINDS if re.search(pattern, names[event.name]))
                    total[kind] += event.duration_ns / 1e6 / steps
    return {kind: round(total[kind], 1) for kind, _ in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.rows, options.tokens, options.dtype, options.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for number in range(options.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "tokens", "dtype", "steps")]
            command = [sys.executable, __file__, "--one", *sizes]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment(way))
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(way, {k: v for k, v in found[way][-1].items() if k != "seconds"}, sorted(found[way][-1]["seconds"])[-1], flush=True)
    write(options, found)


def environment(way: str) -> dict[str, str]:
    from jaxtune.cli.process import HUGE_PAGES, VARIABLE

    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return kept | {"PYTHONPATH": str(HERE.parent)} | ({VARIABLE: HUGE_PAGES} if way == WAYS[1] else {})


def write(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    def middle(way: str, name: str) -> float:
        values = [value for one in found[way] for value in (one[name] if isinstance(one[name], list) else [one[name]])]
        return sorted(values)[len(values) // 2]

    def spread(way: str) -> str:
        values = sorted(value for one in found[way] for value in one["seconds"])
        return f"{middle(way, 'seconds'):.3f} ({values[len(values) // 10]:.3f} to {values[-1 - len(values) // 10]:.3f})"

    before, after = WAYS
    rows: list[list[Any]] = [["seconds, median (p10 to p90)", spread(before), spread(after)]]
    for label, name, form in (("page faults", "faults", "{:,.0f}"), ("peak memory, GiB", "peak_gib", "{:.2f}")):
        rows.append([label, *(form.format(middle(way, name)) for way in WAYS)])
    for kind, _ in KINDS:
        values = [[one["milliseconds"][kind] for one in found[way]] for way in WAYS]
        rows.append([f"{kind}, ms", *(f"{sum(v) / len(v):.0f}" for v in values)])
    machine = {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()}
    told = {
        "date": datetime.date.today().isoformat(), "machine": machine, "rows": options.rows, "tokens": options.tokens,
        "dtype": options.dtype, "found": found,
        "table": {
            "title": f"One training step of MiniLM-L6, {options.rows} x {options.tokens}, {options.dtype}: small and huge pages",
            "columns": ["", *WAYS],
            "rows": rows,
            "note": f"{len(found[before])} processes each, alternating, {platform.processor() or platform.machine()}, 2 cores; "
            "operations under jax's profiler, where a step is slower; `.venv/bin/python benchmarks/step_operations.py`, "
            f"{datetime.date.today().isoformat()}.",
        },
    }  # fmt: skip
    RESULT.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


if __name__ == "__main__":
    main()
