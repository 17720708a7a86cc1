"""MiniLM-L6 on BBC News, full fine-tuning on the CPU: jaxtune, transformers.Trainer on PyTorch, Keras Hub on JAX, in one run.

Every training is a process of its own on the same cores, with the same token ids. Bare steps are timed on rows that fill the length
limit, in alternating rounds; whole epochs run with each side's own batching and end with accuracies. See README.md for what is needed.

    python benchmarks/encoder_cpu.py --torch-python .../bin/python --keras-python .../bin/python [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encoder import report
from encoder.job import Job, write_splits

HERE = Path(__file__).parent
PHASES = ("steps", "epochs", "anatomy")


@dataclass(frozen=True)
class Variant:
    side: str
    precision: str
    compiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.side} {self.precision}{' compiled' if self.compiled else ''}"


VARIANTS = tuple(
    Variant(side, precision, compiled)
    for side, compilations in (("jaxtune", (False,)), ("transformers", (False, True)), ("keras-hub", (False,)))
    for precision in ("bfloat16", "float32")
    for compiled in compilations
)
RUNNERS = {"jaxtune": "encoder.run_jaxtune", "transformers": "encoder.run_transformers", "keras-hub": "encoder.run_keras"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch-python", default=os.environ.get("TORCH_PYTHON"), help="Python with torch and transformers; or TORCH_PYTHON"
    )
    parser.add_argument("--keras-python", default=os.environ.get("KERAS_PYTHON"), help="Python with keras-hub and jax; or KERAS_PYTHON")
    parser.add_argument(
        "--sizes", nargs="+", default=["16x256", "32x256", "16x128", "32x128"], metavar="ROWSxTOKENS", help="of the bare steps"
    )
    parser.add_argument("--epoch-size", default="32x256", metavar="ROWSxTOKENS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs="+", default=[], help="variants measured in the first round only, by the beginning of their names")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--epoch-variants", nargs="+", default=["best"], help="names as in the table, or best: the fastest of each side")
    parser.add_argument("--only", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--skip", nargs="+", default=[], help="variants to leave out, by the beginning of their names")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores and threads for every side")
    parser.add_argument("--keep", action="store_true", help="keep what the file of results has of the parts that are not measured now")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that everything runs")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/encoder_cpu.json, none with --quick")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.epoch_size, options.rounds, options.steps, options.epochs = ["8x64"], "32x32", 2, 3, 2
    elif options.json is None:
        options.json = HERE / "results" / "encoder_cpu.json"
    return options


class Bench:
    """The jobs of one call: files they share, and what came out of them."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        self.pythons = {"jaxtune": sys.executable, "transformers": options.torch_python, "keras-hub": options.keras_python}
        self.failures: list[dict[str, str]] = []
        self.versions: dict[str, Any] = {}
        self.rows: dict[int, int] = {}
        self.models: dict[str, str] = {}

    @property
    def variants(self) -> list[Variant]:
        return [v for v in VARIANTS if self.pythons[v.side] and not starts(v.name, self.options.skip)]

    def prepare(self) -> None:
        """Token ids once per length limit, and the checkpoint where Keras can read it without further packages."""
        from encoder.run_jaxtune import encoded, experiment_of
        from safetensors.numpy import load_file

        from jaxtune.prepare import prepare

        for tokens in sorted({size_of(size)[1] for size in (*self.options.sizes, self.options.epoch_size)}):
            prepared = prepare(experiment_of(batch=32, max_tokens=tokens), cache=self.folder / "data")
            splits = encoded(prepared)
            write_splits(self.folder / f"{tokens}.npz", splits)
            self.rows[tokens] = len(splits["train"])
            checkpoint = prepared.base.checkpoint
            assert checkpoint is not None
            model = Path(checkpoint.folder)
        weights: dict[str, Any] = load_file(model / "model.safetensors")
        np.savez(self.folder / "weights.npz", config=np.asarray((model / "config.json").read_text()), **weights)
        self.models = {"jaxtune": str(model), "transformers": str(model), "keras-hub": str(self.folder / "weights.npz")}

    def run(self, variant: Variant, mode: str, size: str) -> dict[str, Any] | None:
        """One process; None when it failed."""
        rows, tokens = size_of(size)
        self.count += 1
        folder = self.folder / f"{self.count:03d}"
        folder.mkdir()
        options = self.options
        total = options.epochs * -(-self.rows[tokens] // rows)
        job = Job(
            mode=mode, precision=variant.precision, compiled=variant.compiled, data=str(self.folder / f"{tokens}.npz"),
            model=self.models[variant.side], folder=str(folder), batch=rows, max_tokens=tokens, steps=options.warm_up + options.steps,
            epochs=options.epochs, rate=options.rate, warm_up=max(1, total // 10) if mode == "epochs" else 1, weight_decay=0.01,
            seed=options.seed, threads=options.threads,
        )  # fmt: skip
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        print(f"{time.strftime('%H:%M:%S')} {mode} {size} {variant.name} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        before = usage()
        with open(folder / "log.txt", "w") as log:
            command = [self.pythons[variant.side], "-m", RUNNERS[variant.side], str(folder / "job.json")]
            code = subprocess.run(
                command, cwd=HERE, env=self.environment(variant), stdout=log, stderr=subprocess.STDOUT, check=False
            ).returncode
        if code or not job.output.exists():
            lines = (folder / "log.txt").read_text().strip().splitlines()
            self.failures.append({"job": f"{mode} {size} {variant.name}", "error": lines[-1] if lines else f"exit code {code}"})
            print("\n".join(lines[-15:]), file=sys.stderr)
            return None
        outcome = json.loads(job.output.read_text())
        self.versions[variant.side] = outcome.pop("versions")
        return {**outcome, **shares(before, usage())}

    def environment(self, variant: Variant) -> dict[str, str]:
        """Compilation caches start empty; nothing reaches for the network. jaxtune's memory is handed out as its commands see to."""
        from jaxtune.cli.process import VARIABLE, wish

        own = {VARIABLE: wish(["train"], {}, sys.platform, accelerated=False) or ""} if variant.side == "jaxtune" else {}
        threads = str(self.options.threads)
        return os.environ | own | {
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "JAXTUNE_CACHE": str(self.folder / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"), "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip

    def steps(self, size: str) -> Iterator[dict[str, Any]]:
        """Rounds of every variant, there and back again; what is known after each round."""
        found: dict[str, list[Any]] = {variant.name: [] for variant in self.variants}
        for number in range(self.options.rounds):
            order = self.variants if number % 2 == 0 else self.variants[::-1]
            for variant in order:
                if number and starts(variant.name, self.options.once):
                    continue
                outcome = self.run(variant, "steps", size)
                if outcome is not None:
                    found[variant.name].append(outcome)
            rows, warm_up = size_of(size)[0], self.options.warm_up
            summary = {name: report.steps_summary(outcomes, rows, warm_up) for name, outcomes in found.items() if outcomes}
            yield {"variants": summary, "ratios": report.ratios(summary)}

    def epochs(self, size: str, fastest: list[str]) -> Iterator[dict[str, Any]]:
        """One variant after the other; what is known after each."""
        rows, tokens = size_of(size)
        wanted = fastest if self.options.epoch_variants == ["best"] else self.options.epoch_variants
        summary = {}
        for variant in self.variants:
            if variant.name in wanted:
                outcome = self.run(variant, "epochs", size)
                if outcome is not None:
                    summary[variant.name] = report.epochs_summary(outcome, self.rows[tokens], rows)
                yield {"size": size, "rows": self.rows[tokens], "variants": summary, "ratios": report.ratios(summary)}


def starts(name: str, beginnings: list[str]) -> bool:
    return any(name.startswith(beginning) for beginning in beginnings)


def size_of(size: str) -> tuple[int, int]:
    rows, _, tokens = size.partition("x")
    return int(rows), int(tokens)


@dataclass(frozen=True)
class Usage:
    clock: float
    busy: float | None  # seconds of all cores, everybody's
    mine: float  # of processes started here


def usage() -> Usage:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    stat = Path("/proc/stat")
    busy = None
    if stat.exists():
        numbers = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")
    return Usage(time.perf_counter(), busy, children.ru_utime + children.ru_stime)


def shares(before: Usage, after: Usage) -> dict[str, Any]:
    """How much of the machine went to others meanwhile: the number to look at before believing a time."""
    seconds = after.clock - before.clock
    found: dict[str, Any] = {"process_seconds": round(seconds, 1), "others_share": None}
    if before.busy is not None and after.busy is not None:
        others = after.busy - before.busy - (after.mine - before.mine)
        found["others_share"] = round(max(0.0, others) / seconds / (os.cpu_count() or 1), 3)
    return found


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": model, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "system": platform.platform(),
        "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags],
    }  # fmt: skip


def commit() -> str | None:
    """Of the sources; with "+" when files differ from it."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> None:
    options = parse()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "torch_python", "keras_python")}
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine(), "settings": settings,
        "commit": commit(), "load_before": os.getloadavg(), "versions": {}, "steps": {}, "epochs": {}, "anatomy": {}, "failures": [], "complete": False,
    }  # fmt: skip
    if options.keep and options.json is not None and options.json.is_file():
        earlier = json.loads(options.json.read_text(encoding="utf-8"))
        result |= {name: earlier[name] for name in (*PHASES, "versions") if name not in options.only} | {"earlier": earlier["date"]}
    with tempfile.TemporaryDirectory(prefix="encoder_cpu_") as folder:
        bench = Bench(options, Path(folder))
        bench.prepare()
        if "steps" in options.only:
            for size in options.sizes:
                for found in bench.steps(size):
                    result["steps"][size] = found
                    save(options.json, result, bench)
        if "anatomy" in options.only:
            for variant in (v for v in bench.variants if v.side == "jaxtune"):
                outcome = bench.run(variant, "anatomy", options.sizes[0])
                if outcome is not None:
                    result["anatomy"][f"{variant.name}, {options.sizes[0]}"] = outcome["anatomy"]
        if "epochs" in options.only:
            known = result["steps"].get(options.epoch_size) or next(iter(result["steps"].values()), {"variants": {}})
            best = [report.fastest(known["variants"], side) or f"{side} bfloat16" for side in RUNNERS]
            for found in bench.epochs(options.epoch_size, best):
                result["epochs"] = found
                save(options.json, result, bench)
        result["complete"] = True
        save(options.json, result, bench)
    print(report.table(result))


def save(path: Path | None, result: dict[str, Any], bench: Bench) -> None:
    """After every part, so that an interrupted run leaves what it has."""
    result |= {"versions": {**result["versions"], **bench.versions}, "failures": bench.failures}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
