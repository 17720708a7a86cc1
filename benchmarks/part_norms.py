"""What the gradient's norm by part of the model costs a step: MiniLM at 32 x 128, with the norms by part and with one norm of everything.

    .venv/bin/python benchmarks/part_norms.py [--steps 40]

Both programs are the step that `train` runs (as in freezing.py), alternately, so that other work on the machine meets them alike. The
figure is the median of the differences between neighbouring steps, with its 95 % interval by bootstrap. Prints it and writes
benchmarks/results/part_norms.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import freezing
import jax
import numpy as np
import optax

from jaxtune.parallel import hosts

RESULT = Path(__file__).parent / "results" / "part_norms.json"


def one_norm(gradients: Mapping[str, jax.Array]) -> jax.Array:
    """f32[1], where the step has a norm for each part."""
    return optax.tree.norm(gradients)[None]


def measure(trained: str, steps: int) -> dict[str, Any]:
    """Milliseconds of a step with norms by part, and how much longer it takes for them."""
    by_part = freezing.split(trained)
    with patch("jaxtune.training.step.part_norms", one_norm):
        whole = freezing.split(trained)
    times = np.zeros((steps, 2))
    for number in range(-2, steps):
        order = ((0, by_part), (1, whole)) if number % 2 else ((1, whole), (0, by_part))
        for column, way in order:
            start = time.perf_counter()
            way.run()
            if number >= 0:
                times[number, column] = 1e3 * (time.perf_counter() - start)
    more = times[:, 0] - times[:, 1]
    drawn = np.random.default_rng(0).choice(more, (2000, steps))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {
        "trained": trained, "step_ms": round(float(np.median(times[:, 0])), 2), "more_ms": round(float(np.median(more)), 2),
        "low_ms": round(float(low), 2), "high_ms": round(float(high), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="measured steps of every program")
    steps = parser.parse_args().steps
    hosts.start()
    before = freezing.machine()
    rows = [measure(trained, steps) for trained in ("everything", "head only")]
    for row in rows:
        print(
            f"{row['trained']}: {row['step_ms']} ms a step, {row['more_ms']:+} ms of it for norms by part ({row['low_ms']} to {row['high_ms']})"
        )
    shown = [
        [row["trained"], f"{row['step_ms']:.1f}", f"{row['more_ms']:+.2f} ({row['low_ms']:+.2f} to {row['high_ms']:+.2f})"] for row in rows
    ]
    table = {
        "title": "The gradient's norm by part of the model",
        "columns": ["what trains", "ms a step", "of it for the norms by part (95 %)"],
        "rows": shown,
        "note": f"MiniLM at {freezing.ROWS} x {freezing.WIDTH}, bfloat16, {steps} steps each, alternately with one norm of everything "
        f"(`benchmarks/part_norms.py`, {datetime.now(UTC):%Y-%m-%d}).",
    }
    told = {"table": table, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": before, "steps": steps, "rows": rows}
    RESULT.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
