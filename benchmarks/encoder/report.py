"""From outcomes to numbers and a table: medians and spreads over rounds, ratios taken inside each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

Outcome = Mapping[str, Any]
BUSY = 0.1  # share of the machine for others from which on times are not to be believed


def steady(outcome: Outcome, warm_up: int, clock: str = "step_seconds") -> list[float]:
    """Seconds of the steps after warm-up in which nothing was compiled."""
    pairs = zip(outcome[clock], outcome["compiled"], strict=True)
    return [seconds for number, (seconds, compiled) in enumerate(pairs) if number >= warm_up and not compiled]


def compile_seconds(outcome: Outcome, warm_up: int) -> float:
    """What the steps with compilation took beyond a usual step."""
    usual = median(steady(outcome, warm_up))
    return sum(s - usual for s, compiled in zip(outcome["step_seconds"], outcome["compiled"], strict=True) if compiled)


def steps_summary(rounds: Sequence[Outcome], batch: int, warm_up: int) -> dict[str, Any]:
    """One variant at one size; the first round starts with empty compilation caches."""
    each = [steady(outcome, warm_up) for outcome in rounds]
    every = np.asarray([seconds for found in each for seconds in found])
    low, high = np.percentile(every, [10, 90])
    return {
        "step_seconds": round(float(np.median(every)), 4),
        "step_seconds_p10": round(float(low), 4),
        "step_seconds_p90": round(float(high), 4),
        "step_seconds_min": round(float(every.min()), 4),
        "cpu_seconds": round(median(s for outcome in rounds for s in steady(outcome, warm_up, "cpu_seconds")), 4),
        "rounds": [round(median(found), 4) for found in each],
        "timed_steps": len(every),
        "examples_per_second": round(batch / float(np.median(every)), 3),
        "compile_seconds": round(compile_seconds(rounds[0], warm_up), 2),
        "peak_gib": round(max(outcome["peak_bytes"] for outcome in rounds) / 2**30, 2),
        "others_share": [outcome["others_share"] for outcome in rounds],
    }


def epochs_summary(outcome: Outcome, rows: int, batch: int) -> dict[str, Any]:
    """The first epoch holds the compilation (caches warm from the steps of the same shape), the last does not."""
    first, last = outcome["epoch_seconds"][0], outcome["epoch_seconds"][-1]
    return {
        "first_epoch_seconds": round(first, 2),
        "last_epoch_seconds": round(last, 2),
        "epochs": len(outcome["epoch_seconds"]),
        "examples_per_second": round(rows / last, 3),
        "examples_per_second_with_compile": round(rows / first, 3),
        "median_step_seconds": round(median(steady(outcome, 1)), 4),
        "compile_seconds": round(compile_seconds(outcome, 1), 2),
        "accuracy": {name: round(value, 4) for name, value in outcome["accuracy"].items()},
        "peak_gib": round(outcome["peak_bytes"] / 2**30, 2),
        "whole_process_seconds": outcome["process_seconds"],
        "others_share": outcome["others_share"],
    }


def fastest(found: Mapping[str, Mapping[str, Any]], start: str, ending: str = "") -> str | None:
    """The variant of a side (and precision) with the most examples per second."""
    names = [name for name in found if name.startswith(start) and ending in name]
    return max(names, key=lambda name: found[name]["examples_per_second"], default=None)


def ratios(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many times the examples per second of the other side jaxtune has; the range is over the rounds."""
    pairs = {
        "jaxtune best / transformers best": (fastest(found, "jaxtune"), fastest(found, "transformers")),
        "jaxtune float32 / transformers float32 best": (fastest(found, "jaxtune", "float32"), fastest(found, "transformers", "float32")),
        "jaxtune best / keras-hub best": (fastest(found, "jaxtune"), fastest(found, "keras-hub")),
        "jaxtune float32 / keras-hub float32": (fastest(found, "jaxtune", "float32"), fastest(found, "keras-hub", "float32")),
    }
    out: dict[str, Any] = {}
    for name, (mine, theirs) in pairs.items():
        if mine is None or theirs is None:
            continue
        ratio = found[mine]["examples_per_second"] / found[theirs]["examples_per_second"]
        out[name] = {"ratio": round(ratio, 2), "between": [mine, theirs]}
        if "rounds" in found[mine]:
            each = [b / a for a, b in zip(found[mine]["rounds"], found[theirs]["rounds"], strict=False)]
            out[name]["rounds"] = [round(value, 2) for value in each]
            out[name]["by_fastest_step"] = round(found[theirs]["step_seconds_min"] / found[mine]["step_seconds_min"], 2)
            out[name]["by_cpu_seconds"] = round(found[theirs]["cpu_seconds"] / found[mine]["cpu_seconds"], 2)
    return out


def table(report: Mapping[str, Any]) -> str:
    lines: list[str] = []
    for size, found in report["steps"].items():
        lines.append(f"\none step, {size} (rows x tokens, no padding), median over rounds")
        lines.append(f"  {'':34}{'seconds':>9}{'p10-p90':>15}{'CPU s':>8}{'examples/s':>12}{'compile s':>11}{'peak GiB':>10}{'others':>8}")
        for name, row in found["variants"].items():
            spread = f"{row['step_seconds_p10']:.2f}-{row['step_seconds_p90']:.2f}"
            numbers = f"{row['step_seconds']:9.3f}{spread:>15}{row['cpu_seconds']:8.2f}{row['examples_per_second']:12.2f}"
            lines.append(f"  {name:34}{numbers}{row['compile_seconds']:11.1f}{row['peak_gib']:10.2f}{share(row['others_share']):>8}")
        lines += ratio_lines(found["ratios"])
    epochs = report.get("epochs")
    if epochs and epochs["variants"]:
        lines.append(f"\nwhole epochs, {epochs['size']}, {epochs['rows']} training rows, each side's own batching")
        lines.append(f"  {'':34}{'first s':>9}{'last s':>9}{'examples/s':>12}{'validation':>12}{'test':>8}{'peak GiB':>10}{'others':>8}")
        for name, row in epochs["variants"].items():
            numbers = f"{row['first_epoch_seconds']:9.1f}{row['last_epoch_seconds']:9.1f}{row['examples_per_second']:12.2f}"
            judged = f"{row['accuracy']['validation']:12.4f}{row['accuracy']['test']:8.4f}"
            lines.append(f"  {name:34}{numbers}{judged}{row['peak_gib']:10.2f}{share([row['others_share']]):>8}")
        lines += ratio_lines(epochs["ratios"])
    for name, found in report.get("anatomy", {}).items():
        parts = ", ".join(f"{part} {ms:.2f}" for part, ms in found["host_parts_ms"].items())
        lines.append(f"\n{name}: program alone {found['program_ms']:.0f} ms, through the loop {found['loop_ms']:.0f} ms")
        lines.append(
            f"  data wait {found['data_wait_share']:.2%}; host parts at most {found['main_thread_share']:.2%} of a step (ms: {parts})"
        )
    if busiest(report) > BUSY:
        lines.append(
            f"\nOther processes had up to {busiest(report):.0%} of the machine: these numbers are no measurement, run it again on a quiet one."
        )
    lines += [f"\nfailed: {failure['job']}: {failure['error']}" for failure in report["failures"]]
    return "\n".join(lines)


def busiest(report: Mapping[str, Any]) -> float:
    """The largest share of the machine that others had during a job."""
    rows = [row for found in report["steps"].values() for row in found["variants"].values()]
    values = [value for row in rows for value in row["others_share"]]
    values += [row["others_share"] for row in (report["epochs"] or {"variants": {}})["variants"].values()]
    return max((value for value in values if value is not None), default=0.0)


def ratio_lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, row in found.items():
        rounds = ""
        if "rounds" in row:
            each = ", ".join(f"{value:.2f}" for value in row["rounds"])
            rounds = f"  (rounds {each}; fastest steps {row['by_fastest_step']:.2f}, CPU seconds {row['by_cpu_seconds']:.2f})"
        lines.append(f"  {name}: {row['ratio']:.2f} x{rounds}  [{row['between'][0]} : {row['between'][1]}]")
    return lines


def share(values: Sequence[float | None]) -> str:
    """Of the machine's time, what went to other processes."""
    known = [value for value in values if value is not None]
    return f"{max(known):.0%}" if known else "?"
