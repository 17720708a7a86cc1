"""Times one fine-tuning step of MiniLM-L6 on CPU and the pieces of it, with the layers' CPU rules and without them.

Plain and fast run alternately in one process and the table gives medians, because the machine may be shared: trust the ratios.
CPU time (both cores) stands beside wall time; it suffers less from neighbours. Weights are random, which changes no time.

    python benchmarks/step_profile.py [--dtype bfloat16] [--batch 16] [--tokens 256] [--repeats 9] [--pieces / --step] [--json FILE]

For the page faults that the C library's allocator costs, run it again with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 set: large blocks
are mapped afresh in every step, and huge pages make that 512 times rarer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune.layers.activations import gelu
from jaxtune.layers.attention import attention
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.matmul import matmul
from jaxtune.layers.norm import layer_norm

WIDTH, HEADS, LAYERS, HIDDEN, VOCABULARY, CLASSES = 384, 12, 6, 1536, 30522, 5
RULES = {"plain": "tpu", "fast": "cpu"}  # the backend whose rules are taken


class Layers:
    """The layer functions under one set of rules."""

    def __init__(self, rules: str):
        self.rules, backend = rules, RULES[rules]
        self.gelu = partial(gelu, backend=backend)
        self.norm = partial(layer_norm, backend=backend)
        self.attention = partial(attention, implementation="cpu" if rules == "fast" else "xla")
        self.backend = backend

    def dense(self, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return matmul(x, kernel, bias=bias, backend=self.backend)

    def dropout(self, x: jax.Array, noise: Dropout, site: str) -> jax.Array:
        if self.rules == "fast":
            return noise.on(x, site)
        keep = jax.random.bernoulli(jax.random.fold_in(noise.key, len(site)), 1 - noise.hidden, x.shape)
        return jnp.where(keep, x / (1 - noise.hidden).astype(x.dtype), 0).astype(x.dtype)


def parameters() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"words": (VOCABULARY, WIDTH), "positions": (512, WIDTH), "head.w": (WIDTH, CLASSES)}
    for i in range(LAYERS):
        shapes |= {f"{i}.{name}.w": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{i}.up.w": (WIDTH, HIDDEN), f"{i}.down.w": (HIDDEN, WIDTH)}
    values = {name: jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32) for name, shape in shapes.items()}
    values |= {name[:-1] + "b": jnp.zeros(value.shape[-1]) for name, value in values.items() if name.endswith(".w")}
    for name in ("norm", *(f"{i}.norm{j}" for i in range(LAYERS) for j in (1, 2))):
        values |= {f"{name}.s": jnp.ones(WIDTH), f"{name}.b": jnp.zeros(WIDTH)}
    return values


def logits(layers: Layers, dtype: Any, p: dict[str, jax.Array], batch: dict[str, jax.Array], noise: Dropout) -> jax.Array:
    rows, tokens = batch["tokens"].shape
    dense = lambda name, x: layers.dense(x, p[f"{name}.w"], p[f"{name}.b"])  # noqa: E731
    norm = lambda name, x: layers.norm(x, p[f"{name}.s"], p[f"{name}.b"], 1e-12)  # noqa: E731
    x = norm("norm", (p["words"][batch["tokens"]] + p["positions"][None, :tokens]).astype(dtype))
    x = layers.dropout(x, noise, "embedding")
    for i in range(LAYERS):
        here = noise.fold(i)
        q, k, v = (dense(f"{i}.{name}", x).reshape(rows, tokens, HEADS, -1) for name in "qkv")
        mixed = layers.attention(q, k, v, segment_ids=batch["segments"], noise=here).reshape(x.shape)
        x = norm(f"{i}.norm1", x + layers.dropout(dense(f"{i}.o", mixed), here, "o"))
        x = norm(f"{i}.norm2", x + layers.dropout(dense(f"{i}.down", layers.gelu(dense(f"{i}.up", x))), here, "down"))
    return dense("head", x[:, 0].astype(jnp.float32))


def whole_step(rules: str, dtype: Any, rows: int, tokens: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A donating train step (loss, gradients, clipping, AdamW) and its arguments."""
    layers = Layers(rules)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-5, weight_decay=0.01))

    def loss(p: dict[str, jax.Array], batch: dict[str, jax.Array], noise: Dropout) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(layers, dtype, p, batch, noise), batch["label"]).mean()

    def step(p: Any, state: Any, batch: Any, noise: Dropout) -> Any:
        value, gradient = jax.value_and_grad(loss)(p, batch, noise)
        updates, state = optimizer.update(gradient, state, p)
        return optax.apply_updates(p, updates), state, value

    rng = np.random.default_rng(1)
    batch = {
        "tokens": jnp.asarray(rng.integers(1000, 30000, (rows, tokens)), jnp.int32),
        "segments": jnp.ones((rows, tokens), jnp.int32),
        "label": jnp.asarray(rng.integers(0, CLASSES, rows)),
    }
    p = parameters()
    return step, (p, optimizer.init(p), batch, noise())


def noise() -> Dropout:
    return Dropout(key=jax.random.key(0), hidden=jnp.float32(0.1), attention=jnp.float32(0.1), head=jnp.float32(0.1))


def pieces(rules: str, dtype: Any, rows: int, tokens: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Name -> forward and backward of one piece, and its arguments."""
    layers, key = Layers(rules), iter(jax.random.split(jax.random.key(0), 99))

    def value(*shape: int, kind: Any = dtype) -> jax.Array:
        return jax.random.normal(next(key), shape, jnp.float32).astype(kind)

    def both(function: Callable[..., jax.Array]) -> Callable[..., Any]:
        def run(gradient: jax.Array, *arguments: jax.Array) -> Any:
            out, pull = jax.vjp(function, *arguments)
            return out, pull(gradient)

        return run

    x, wide = (rows, tokens, WIDTH), (rows, tokens, HIDDEN)
    heads = (rows, tokens, HEADS, WIDTH // HEADS)
    segments, f32 = jnp.ones((rows, tokens), jnp.int32), jnp.float32
    weights = lambda i, o: (value(i, o, kind=f32), value(o, kind=f32))  # noqa: E731
    attend = lambda q, k, v: layers.attention(q, k, v, segment_ids=segments, noise=noise())  # noqa: E731
    still = lambda q, k, v: layers.attention(q, k, v, segment_ids=segments)  # noqa: E731
    return {
        "dense 384 x 384": (both(layers.dense), (value(*x), value(*x), *weights(WIDTH, WIDTH))),
        "dense 384 x 1536": (both(layers.dense), (value(*wide), value(*x), *weights(WIDTH, HIDDEN))),
        "dense 1536 x 384": (both(layers.dense), (value(*x), value(*wide), *weights(HIDDEN, WIDTH))),
        "attention with dropout": (both(attend), tuple(value(*heads) for _ in range(4))),
        "attention": (both(still), tuple(value(*heads) for _ in range(4))),
        "gelu": (both(layers.gelu), (value(*wide), value(*wide))),
        "layer norm": (
            both(lambda x, s, b: layers.norm(x, s, b, 1e-12)),
            (value(*x), value(*x), value(WIDTH, kind=f32), value(WIDTH, kind=f32)),
        ),
        "dropout": (both(lambda x: layers.dropout(x, noise(), "a")), (value(*x), value(*x))),
    }


def clocks() -> tuple[float, float, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), usage.ru_utime + usage.ru_stime, usage.ru_minflt


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Wall and CPU milliseconds and page faults of each run, taken alternately; the first round is not counted."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            before = clocks()
            jax.block_until_ready(run())
            if round_:
                found[name].append(tuple(b - a for a, b in zip(before, clocks(), strict=True)))
    return {name: summary(np.asarray(rows)) for name, rows in found.items()}


def summary(rows: np.ndarray) -> dict[str, float]:
    wall, cpu = rows[:, 0] * 1e3, rows[:, 1] * 1e3
    low, high = np.percentile(wall, [10, 90])
    numbers = {"wall_ms": np.median(wall), "wall_ms_p10": low, "wall_ms_p90": high, "wall_ms_min": wall.min()}
    numbers |= {"cpu_ms": np.median(cpu), "page_faults": np.median(rows[:, 2])}
    return {name: round(float(number), 3) for name, number in numbers.items()}


def repeated_step(rules: str, dtype: Any, rows: int, tokens: int) -> tuple[Callable[[], Any], float]:
    """A call that runs the next step, and the step's temporary memory in MiB."""
    step, (p, state, batch, key) = whole_step(rules, dtype, rows, tokens)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(p, state, batch, key).compile()
    held = [p, state]

    def run() -> Any:
        held[0], held[1], _ = program(held[0], held[1], batch, key)
        return held

    return run, program.memory_analysis().temp_size_in_bytes / 2**20


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    amx = any("amx_bf16" in line for line in lines)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "amx_bf16": amx,
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], action="append", help="default: both")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--pieces", action="store_true", help="the pieces only")
    parser.add_argument("--step", action="store_true", help="the whole step only")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "step_profile.json")
    options = parser.parse_args()
    report: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine()}
    report |= {"batch": options.batch, "tokens": options.tokens, "repeats": options.repeats, "results": {}}
    for kind in options.dtype or ["bfloat16", "float32"]:
        dtype, found = jnp.dtype(kind), report["results"].setdefault(kind, {})
        print(f"\n{kind}, {options.batch} x {options.tokens}\n{'':26}{'plain':>10}{'fast':>10}{'ratio':>8}   (wall ms; CPU ms and ratio)")
        if not options.step:
            sides = {rules: pieces(rules, dtype, options.batch, options.tokens) for rules in RULES}
            for name in sides["fast"]:
                runs = {r: partial(jax.jit(side[name][0]), *side[name][1]) for r, side in sides.items()}
                show(name, found.setdefault(name, measure(runs, options.repeats)))
        if not options.pieces:
            steps = {r: repeated_step(r, dtype, options.batch, options.tokens) for r in RULES}
            times = measure({r: run for r, (run, _) in steps.items()}, options.repeats)
            for rules, (_, memory) in steps.items():
                times[rules] |= {
                    "temporary_mib": round(memory, 1),
                    "examples_per_second": round(1e3 * options.batch / times[rules]["wall_ms"], 2),
                }
            show("whole step", found.setdefault("whole step", times))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten: {options.json}")


def show(name: str, times: dict[str, dict[str, float]]) -> None:
    plain, fast = times["plain"], times["fast"]
    wall, cpu = plain["wall_ms"] / fast["wall_ms"], plain["cpu_ms"] / fast["cpu_ms"]
    line = f"{name:26}{plain['wall_ms']:10.1f}{fast['wall_ms']:10.1f}{wall:8.2f}   {plain['cpu_ms']:10.1f}{fast['cpu_ms']:10.1f}{cpu:8.2f}"
    print(line + (f"   {fast['examples_per_second']:.2f} examples/s" if "examples_per_second" in fast else ""), flush=True)


if __name__ == "__main__":
    main()
