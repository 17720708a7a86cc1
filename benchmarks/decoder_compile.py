"""How much longer a deep decoder takes to compile than a shallow one: loss and gradient of 32 layers against 4, scanned and unrolled.

    .venv/bin/python benchmarks/decoder_compile.py [--family llama gemma3_text] [--times 3]   -> benchmarks/results/decoder_compile.json

Tracing and XLA's compilation of one step from shapes alone (no weights), without a cache of programs, in alternating order; the median
of a few times. Gemma 3's kinds of layers repeat with a period of 6, so its scans run over 6 blocks (4 and 32 layers become 12 and 36).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from jaxtune.layers.lm_loss import lm_loss
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Blueprint
from jaxtune.models.load import maker, open_base

RESULT = Path(__file__).parent / "results" / "decoder_compile.json"
BATCH, TOKENS = 4, 256
SIZES = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
DEPTHS = {"llama": (4, 32), "gemma3_text": (12, 36)}


def seconds(family: str, layers: int, scan: bool) -> dict[str, float]:
    """Seconds to trace and to compile, and the program's size."""
    base = open_base({"family": family, "config": {**SIZES, "num_hidden_layers": layers}})
    blueprint = Blueprint.of(maker(base.family, "language", seed=0, options=StackOptions(scan=scan), dtype="bfloat16"))

    def loss(values: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
        model: Any = blueprint.build(values)
        hidden = model({"tokens": tokens, "segment_ids": jnp.ones_like(tokens)}).tokens
        losses = lm_loss(hidden, model.head.weights(model), tokens, jnp.ones(tokens.shape), soft_cap=model.head.soft_cap).loss
        return losses.mean()

    tokens = jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32)
    began = time.perf_counter()
    traced = jax.jit(jax.grad(loss)).lower(blueprint.params, tokens)
    lowered = time.perf_counter()
    traced.compile()
    done = time.perf_counter()
    return {"trace": lowered - began, "compile": done - lowered, "lines": len(traced.as_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="*", default=list(DEPTHS), choices=list(DEPTHS))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--unrolled", action="store_true", help="also without scanning, for comparison (slow)")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    seconds("llama", 1, True)  # the first program of a process also loads the compiler
    rows = []
    for family in arguments.family:
        for scan in (True, False) if arguments.unrolled else (True,):
            depths = DEPTHS[family]
            found = {depth: [] for depth in depths}
            for _ in range(arguments.times if scan else 1):
                for depth in depths:
                    found[depth].append(seconds(family, depth, scan))
            median = {depth: statistics.median(row["trace"] + row["compile"] for row in each) for depth, each in found.items()}
            ratio = median[depths[1]] / median[depths[0]]
            print(
                f"{family:12} {'scanned' if scan else 'unrolled':8} "
                + "  ".join(f"{d} layers {s:.2f} s" for d, s in median.items())
                + f"  {ratio:.2f} x"
            )
            rows.append({"family": family, "scanned": scan, "seconds": {str(d): each for d, each in found.items()}, "ratio": ratio})
    made = {"date": datetime.date.today().isoformat(), "jax": jax.__version__, "cpu": platform.processor(), "cores": os.cpu_count()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"made_with": made, "batch": [BATCH, TOKENS], "sizes": SIZES, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
