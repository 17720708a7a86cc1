"""A search of BBC News with MiniLM: Hyperband against random search, memory over 30 trials, and a search that is killed.

    .venv/bin/python benchmarks/search_bbc.py [--trials 30] [--seeds 1] [--steps 24] [--out FILE.json]

Every search is `jaxtune search` in a process of its own, over rate, warm-up, weight decay, layer decay, beta1 and dropout of one short phase. A small
search, also over two batch sizes, is killed with SIGKILL in the middle of a trial, twice, started again, and compared with the same search left alone.
Then random search, which trains every trial to its end, against Hyperband (one bracket, sampler tpe) with the same space, number of trials and seed.
Prints a table and writes benchmarks/results/search_bbc.json, after every search what there is so far.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "search_bbc.json"
EVERY = 4  # steps between evaluations, and to the lowest rung
HALVING = {"kind": "hyperband", "brackets": 1}  # a training this short has two rungs; brackets that skip them would stop nothing
PHASE = "phases.0.optimizer"
SPACE = {
    f"{PHASE}.schedule.peak": {"kind": "float", "low": 1e-6, "high": 1e-1, "log": True},
    f"{PHASE}.schedule.warmup": {"kind": "float", "low": 0.0, "high": 0.5},
    f"{PHASE}.weight_decay": {"kind": "float", "low": 1e-4, "high": 1.0, "log": True},
    f"{PHASE}.layer_decay": {"kind": "float", "low": 0.5, "high": 1.0},
    f"{PHASE}.beta1": {"kind": "float", "low": 0.5, "high": 0.98},
    "model.dropout.hidden": {"kind": "float", "low": 0.0, "high": 0.5},
}
TOLD = ("trial", "state", "value", "settings", "curve", "steps", "best_step", "metrics", "reason")


def write_search(folder: Path, name: str, strategy: Any, trials: int, steps: int, seed: int = 0, **more: Any) -> Path:
    """A search file over the quickstart, cut to one short phase of short texts; `more` is searched as well."""
    optimizer = {"kind": "adamw", "layer_decay": 0.9, "schedule": {"kind": "linear", "peak": 1e-4}}
    content: dict[str, Any] = {
        "name": name,
        "experiment": str(ROOT / "configs" / "quickstart.yaml"),
        "set": {
            "data.max_tokens": 64,
            "data.widths": [64],
            "data.batch_size": 16,
            "data.evaluation_batch_size": 56,
            "data.split.validation": 0.05,
            "phases": [{"train": ["head.*", "pooler.*", "layers.{4-5}.*"], "steps": steps, "optimizer": optimizer}],
            "evaluation.every_steps": EVERY,
        },
        "space": SPACE | more,
        "strategy": strategy,
        "trials": trials,
        "save_seconds": 0.0 if name == "killed" else 60.0,
        "seed": seed,
    }
    for key in more:
        content["set"].pop(key, None)
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(content, indent=1))
    return path


def command(file: Path, runs: Path) -> list[str]:
    return [sys.executable, "-m", "jaxtune", "search", str(file), "--runs-dir", str(runs), "--json"]


def run(file: Path, runs: Path) -> dict[str, Any]:
    """A search to its end: its numbers, its trials, and the seconds of the whole process."""
    began = time.perf_counter()
    done = subprocess.run(command(file, runs), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    numbers = json.loads(done.stdout)
    return {**numbers, "wall_seconds": time.perf_counter() - began, "rows": rows(Path(numbers["search"]))}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def kill_in_trial(file: Path, runs: Path, number: int) -> int:
    """Starts a search and kills it in the middle of a trial; how many trials had ended."""
    process = subprocess.Popen(command(file, runs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = runs / file.stem
    trial = folder / "trials" / f"{number:04d}"

    def has_come() -> bool:
        """The first trial, which is never stopped early, has a whole checkpoint; a later one is in its first steps."""
        return any(trial.glob("checkpoints/*/jaxtune_manifest.json")) if number == 0 else trial.exists()

    while not has_come():
        if process.poll() is not None:
            raise SystemExit("the search ended before it could be killed")
        time.sleep(0.005)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(rows(folder)) if (folder / "trials.jsonl").is_file() else 0


def compare(folder: Path, trials: int, steps: int, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, summary) of random search and of Hyperband."""
    for name, strategy in (("random", "random"), ("hyperband", HALVING)):
        found = summary(run(write_search(folder, f"{name}-{seed}", strategy, trials, steps, seed), folder / "runs"))
        print(f"{name}, seed {seed}: {found['best']:.4f} in {found['steps']} steps, {found['wall_seconds']:.0f} s", flush=True)
        yield name, found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a search."""
    memory = [row["memory_bytes"] for row in found["rows"]]
    best = found["rows"][found["winner"]["trial"]]
    return {
        "best": found["winner"]["value"],
        "loss_of_best": best["metrics"]["loss"],
        "settings": found["winner"]["settings"],
        "steps": found["steps"],
        "trials": found["trials"],
        "compilations": found["compilations"],
        "wall_seconds": found["wall_seconds"],
        "memory_bytes": memory,
        "memory_change_from_trial_5": (max(memory[5:]) - min(memory[5:])) / memory[5] if len(memory) > 6 else None,
        "values": [row["value"] for row in found["rows"]],
        "importance": found["importance"],
    }


def killed(folder: Path) -> dict[str, Any]:
    """The same small search left alone, and killed twice."""
    sizes = {"data.batch_size": [8, 16]}
    alone = run(write_search(folder, "alone", HALVING, 6, 16, **sizes), folder / "runs")
    file = write_search(folder, "killed", HALVING, 6, 16, **sizes)
    ended = [kill_in_trial(file, folder / "runs", number) for number in (0, 3)]
    again = run(file, folder / "runs")
    told = [[{name: row[name] for name in TOLD} for row in found["rows"]] for found in (alone, again)]
    return {
        "ended_when_killed": ended,
        "trials": len(told[0]),
        "same_trials": told[0] == told[1],
        "shapes": len({row["settings"]["data.batch_size"] for row in alone["rows"]}),
        "compilations": alone["compilations"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1, help="searches with other seeds")
    parser.add_argument("--steps", type=int, default=24, help="of a whole trial")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    began = time.perf_counter()
    day = datetime.now(UTC).date().isoformat()
    result: dict[str, Any] = {
        "date": day,
        "machine": machine(),
        "trials": options.trials,
        "steps_of_a_trial": options.steps,
        "comparison": [],
    }

    def keep() -> None:
        result["wall_seconds"] = time.perf_counter() - began
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as place:
        kill = result["kill"] = killed(Path(place))
        keep()
        print(f"killed after {kill['ended_when_killed']} trials, gone on: same trials {kill['same_trials']}", flush=True)
        print(f"{kill['compilations']} compilations for {kill['shapes']} batch sizes, {time.perf_counter() - began:.0f} s", flush=True)
        for seed in range(options.seeds):
            result["comparison"].append({"seed": seed})
            for name, found in compare(Path(place), options.trials, options.steps, seed):
                result["comparison"][-1][name] = found
                keep()
    result["claims"] = claims(result)
    result["table"] = table(result)
    keep()
    for row in [result["table"]["columns"], *result["table"]["rows"]]:
        print("  ".join(str(cell).ljust(18) for cell in row))
    print(result["table"]["note"])
    for claim, holds in result["claims"].items():
        print(f"{'yes' if holds else 'NO '}  {claim}")


def claims(result: dict[str, Any]) -> dict[str, bool]:
    """What was to be shown, and whether it was."""
    pairs = [(one["random"], one["hyperband"]) for one in result["comparison"]]
    searches = [found for pair in pairs for found in pair]
    kill = result["kill"]
    return {
        "hyperband's best is at least random's best": all(bands["best"] >= random["best"] for random, bands in pairs),
        "hyperband takes at most half of random's steps": all(bands["steps"] <= random["steps"] / 2 for random, bands in pairs),
        "memory changes by at most 10 % from trial 5 on": all((found["memory_change_from_trial_5"] or 0) <= 0.1 for found in searches),
        "at most one compilation per shape": kill["compilations"] <= kill["shapes"]
        and all(found["compilations"] <= 1 for found in searches),
        "killed and gone on: the same trials": kill["same_trials"],
    }


def table(result: dict[str, Any]) -> dict[str, Any]:
    """For the documentation."""
    cells = []
    for found in result["comparison"]:
        for name in ("random", "hyperband"):
            one = found[name]
            cells.append(
                [
                    f"{name}, seed {found['seed']}", f"{one['best']:.4f}", f"{one['loss_of_best']:.3f}", f"{one['steps']:,}", f"{one['trials']['stopped']}",
                    f"{one['compilations']}", f"{100 * (one['memory_change_from_trial_5'] or 0):.1f} %", f"{one['wall_seconds']:.0f}",
                ]
            )  # fmt: skip
    kill = result["kill"]
    machine = result["machine"]
    note = (
        f"{result['trials']} trials each of {result['steps_of_a_trial']} steps of 16 x 64 tokens, evaluated every {EVERY} steps on 111 texts, over six settings (rate, warm-up, decay, layer decay, "
        f"beta1, dropout), BBC News with MiniLM (`benchmarks/search_bbc.py`, {result['date']}, {machine['processor']}, {machine['cores']} cores, jax {machine['jax']}). "
        f"Memory: greatest less least resident memory of the process after the trials from the sixth on. A search of {kill['trials']} trials killed with SIGKILL "
        f"after {' and again after '.join(map(str, kill['ended_when_killed']))} of them and started again ended with "
        f"{'the very trials, values and curves of' if kill['same_trials'] else 'OTHER trials than'} the search left alone; "
        f"{kill['compilations']} compilations for its {kill['shapes']} batch sizes."
    )
    columns = ["search", "best F1", "its loss", "steps", "stopped", "compilations", "memory change", "seconds"]
    return {"title": "Hyperband against random search", "columns": columns, "rows": cells, "note": note}


def machine() -> dict[str, Any]:
    """Where it ran."""
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = {name: version(name) for name in ("jax", "optuna")}
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
    }


if __name__ == "__main__":
    main()
