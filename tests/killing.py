"""Runs of the tiny experiment that are killed at a chosen moment, and the comparison of what comes out with the undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tiny_run

from jaxtune.checkpoint.store import Store

SLOW = "data.augment.0.seconds=0.003"  # changes no number; a step then takes 25 ms and more
TIMES = ("time", "seconds", "wait_seconds", "compiled")
SPEEDS = ("seconds", "examples_per_second", "tokens_per_second", "data_wait_share", "compile_seconds", "peak_memory_bytes")
POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Moment:
    """When to strike."""

    name: str
    has_come: Callable[[Path], bool]  # run folder -> whether it is time


def after_step(step: int) -> Moment:
    """A row of this step is written."""
    return Moment(f"step {step}", lambda run: last_step(run) >= step)


def in_a_save(step: int) -> Moment:
    """A checkpoint after this step is being written: Orbax has not renamed it yet."""
    return Moment(f"save after step {step}", lambda run: any(number > step and not name.isdecimal() for number, name in checkpoints(run)))


def before_the_proof(step: int) -> Moment:
    """A checkpoint after this step has its name, but no manifest yet."""

    def has_come(run: Path) -> bool:
        found = [name for number, name in checkpoints(run) if number > step and name.isdecimal()]
        return any(not (run / "checkpoints" / name / "jaxtune_manifest.json").exists() for name in found)

    return Moment(f"unproven save after step {step}", has_come)


def at_event(kind: str, count: int = 1) -> Moment:
    """An event of this kind is in events.jsonl for the `count`th time."""
    return Moment(f"event {kind} {count}", lambda run: text(run / "events.jsonl").count(f'"event": "{kind}"') >= count)


def when_there(name: str) -> Moment:
    """A file of the run folder exists."""
    return Moment(f"{name} there", lambda run: (run / name).exists())


def any_time(dice: random.Random, longest: float) -> Moment:
    """So many seconds after the run folder was made."""
    seconds = dice.uniform(0, longest)
    began: list[float] = []

    def has_come(run: Path) -> bool:
        if (run / "state.json").exists() and not began:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > seconds

    return Moment(f"{seconds:.2f} s after the start", has_come)


def strike(folder: Path, moment: Moment, number: signal.Signals = signal.SIGKILL, timeout_seconds: float = 300) -> tuple[int, str]:
    """Starts (or resumes) the tiny experiment in `folder` and sends it a signal at the moment; (return code, what it said on stderr).

    A run that ends before the moment comes returns 0.
    """
    run = folder / "runs" / "tiny"
    begun = (run / "resolved.yaml").exists()
    words = ["resume", "runs/tiny"] if begun else ["train", "tiny.yaml", SLOW]
    with open(folder / "stderr.txt", "w+") as err:
        process = subprocess.Popen(
            tiny_run.command(*words),
            cwd=folder,
            env=tiny_run.environment(),
            stdout=subprocess.DEVNULL,
            stderr=err,
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + timeout_seconds
        try:
            while process.poll() is None and not moment.has_come(run):
                assert time.monotonic() < deadline, f"{moment.name} did not come within {timeout_seconds} s"
                time.sleep(POLL_SECONDS)
            if process.poll() is None:
                os.kill(process.pid, number)
            code = process.wait(timeout_seconds)
        finally:
            process.kill()
            process.wait()
        err.seek(0)
        return code, err.read()


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs apart from times: checkpoints, results, metrics, predictions, export. Empty when nothing does."""
    return [*differing_checkpoints(one, other), *differing_files(one, other)]


def differing_checkpoints(one: Path, other: Path) -> Iterator[str]:
    """The last and the best checkpoint: parameters, averages, optimizer state, key, counters, and the host's part."""
    stores = [Store(run / "checkpoints", best="max", read_only=True) for run in (one, other)]
    for which in ("latest_step", "best_step"):
        steps = [getattr(store, which) for store in stores]
        if steps[0] != steps[1]:
            yield f"{which}: {steps[0]} and {steps[1]}"
            continue
        arrays = [store.read_arrays(steps[0]) for store in stores]
        if arrays[0].keys() != arrays[1].keys():
            yield f"{which}: other arrays"
            continue
        yield from (f"{which}: {name}" for name, value in arrays[0].items() if not same(value, arrays[1][name]))
        metas = [without(store.meta(steps[0])["progress"], TIMES) for store in stores]
        if metas[0] != metas[1]:
            yield f"{which}: {metas[0]} and {metas[1]}"


def differing_files(one: Path, other: Path) -> Iterator[str]:
    results = [without(json.loads((run / "result.json").read_text()), SPEEDS) for run in (one, other)]
    if results[0] != results[1]:
        yield f"result.json: {results[0]} and {results[1]}"
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [[without(json.loads(line), TIMES) for line in (run / name).read_text().splitlines()] for run in (one, other)]
        if len(rows[0]) != len(rows[1]):
            yield f"{name}: {len(rows[0])} and {len(rows[1])} rows"
        yield from (f"{name}: {a} and {b}" for a, b in zip(*rows, strict=False) if a != b)
    for split in ("validation", "test"):
        tables = [pq.read_table(run / "predictions" / f"{split}.parquet") for run in (one, other)]
        if not tables[0].equals(tables[1]):
            yield f"predictions of {split}"
    for file in sorted((one / "export").iterdir()):
        if file.name != "README.md" and file.read_bytes() != (other / "export" / file.name).read_bytes():
            yield f"export/{file.name}"


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def without(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in names}


def checkpoints(run: Path) -> list[tuple[int, str]]:
    """(step, name) of every folder that is or becomes a checkpoint."""
    try:
        names = [entry.name for entry in os.scandir(run / "checkpoints")]
    except FileNotFoundError:
        return []
    return [(int(name.partition(".")[0]), name) for name in names if name.partition(".")[0].isdecimal()]


def last_step(run: Path) -> int:
    """Of the last whole row of metrics.jsonl; 0 before the first."""
    lines = text(run / "metrics.jsonl").rpartition("\n")[0].rpartition("\n")[2]
    return json.loads(lines)["step"] if lines else 0


def text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
