"""A tiny two-phase run, killed at many moments and resumed, compared with the undisturbed run: every difference but times counts.

    .venv/bin/python benchmarks/kill_resume.py --trials 25      -> benchmarks/results/kill_resume.json

The run has dropout, shuffling, random deletion, averaged weights, skipped steps, early stopping and plateau (tests/tiny_run.py). Compared are
the last and the best checkpoint (parameters, averages, optimizer state, random key, counters, what the stop rules remember), result.json,
every row of metrics.jsonl, the predictions and the export. Every third trial is killed twice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kill_resume.json"
sys.path.insert(0, str(ROOT / "tests"))

import killing
import tiny_run
from killing import Moment

Maker = Callable[[random.Random], Moment]
KINDS: dict[str, tuple[Maker, signal.Signals]] = {
    "a random step": (lambda dice: killing.after_step(dice.randint(1, 40)), signal.SIGKILL),
    "during a save": (lambda dice: killing.in_a_save(dice.randint(0, 30)), signal.SIGKILL),
    "a save without its proof": (lambda dice: killing.before_the_proof(dice.randint(0, 30)), signal.SIGKILL),
    "any time after the start": (lambda dice: killing.any_time(dice, 6.0), signal.SIGKILL),
    "between two phases": (lambda dice: killing.at_event("phase", 2), signal.SIGKILL),
    "after an evaluation decided": (lambda dice: killing.at_event("decision", dice.randint(1, 2)), signal.SIGKILL),
    "during the last evaluation": (lambda dice: killing.at_event("measured"), signal.SIGKILL),
    "with the export just written": (lambda dice: killing.when_there("export"), signal.SIGKILL),
    "SIGTERM at a random step": (lambda dice: killing.after_step(dice.randint(1, 40)), signal.SIGTERM),
    "Ctrl-C at a random step": (lambda dice: killing.after_step(dice.randint(1, 40)), signal.SIGINT),
}
EXPECTED = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGINT: 130}


def one_trial(number: int, folder: Path, undisturbed: Path, dice: random.Random) -> dict[str, Any]:
    """Kills, resumes, compares."""
    kinds = list(KINDS)
    wanted = [kinds[number % len(kinds)]] + (["a random step"] if number % 3 == 2 else [])
    tiny_run.write_all(folder)
    run = folder / "runs" / "tiny"
    struck, problems = [], []
    for kind in wanted:
        maker, sent = KINDS[kind]
        moment = maker(dice)
        code, said = killing.strike(folder, moment, sent)
        struck.append({"kind": kind, "moment": moment.name, "signal": sent.name, "exit_code": code, "step_reached": killing.last_step(run)})
        if code not in (EXPECTED[sent], 0):
            problems.append(f"{moment.name}: exit code {code}: {said[-300:]}")
        if code == 0:
            struck[-1]["kind"] = "came too late: the run had ended"
            break
    began = time.perf_counter()
    done = tiny_run.run("resume", "runs/tiny", "--json", folder=folder)
    if done.code:
        problems.append(f"resume: exit code {done.code}: {done.stderr[-300:]}")
    else:
        problems += killing.differences(undisturbed, run)
    return {"trial": number, "struck": struck, "resume_seconds": round(time.perf_counter() - began, 1), "differences": problems}


def main() -> int:
    """0 when no trial shows a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another one every time")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        tiny_run.write_all(root / "undisturbed")
        first = tiny_run.run("train", "tiny.yaml", killing.SLOW, "--json", folder=root / "undisturbed")
        if first.code:
            sys.exit(f"the undisturbed run failed: {first.stderr}")
        rows = []
        for number in range(options.trials):
            rows.append(one_trial(number, root / str(number), root / "undisturbed" / "runs" / "tiny", dice))
            row = rows[-1]
            told = " then ".join(f"{s['kind']} ({s['moment']}, at step {s['step_reached']})" for s in row["struck"])
            print(f"{'equal' if not row['differences'] else 'DIFFERS'}  {told}  {row['differences'] or ''}", flush=True)
    failed = sum(bool(row["differences"]) for row in rows)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"platform": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()},
        "seed": seed,
        "steps_of_the_run": first.told["steps"],
        "trials": len(rows),
        "bit_equal": len(rows) - failed,
        "signals": Counter(s["signal"] for row in rows for s in row["struck"]),
        "moments": Counter(s["kind"] for row in rows for s in row["struck"]),
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows) - failed} of {len(rows)} trials bit-equal; {RESULT}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
