"""LoRA of SmolLM2-135M-Instruct on BBC headlines on the CPU: jaxtune, transformers.Trainer with peft, and Tunix, in one run.

Every training is a process of its own on the same cores, in alternating rounds. All sides get the same batches in the same order (token ids
and which of them are learned, as jaxtune plans them), the same first adapter and the same AdamW, so their losses can be held against each
other step by step.

    python benchmarks/lm_cpu.py --torch-python .../bin/python [--tunix-python .../bin/python] [--quick]

Needs .cache/models/SmolLM2-135M-Instruct (scripts/get_smollm2.sh) and the demo packages; torch, transformers and peft in one Python,
google-tunix in another. Writes benchmarks/results/lm_cpu.json after every process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from encoder_cpu import commit, machine, shares, usage
from lm.job import Job

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / ".cache" / "models" / "SmolLM2-135M-Instruct"
SIDES = {"jaxtune": "lm.run_jaxtune", "transformers + peft": "lm.run_transformers", "Tunix": "lm.run_tunix"}
BUSY = 0.1  # share of the machine for others from which on times are not to be believed


@dataclass(frozen=True)
class Variant:
    side: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.side}, {self.precision}"


VARIANTS = tuple(Variant(side, precision) for precision in ("bfloat16", "float32") for side in SIDES)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch-python", default=os.environ.get("TORCH_PYTHON"), help="Python with torch, transformers, peft; or TORCH_PYTHON"
    )
    parser.add_argument("--tunix-python", default=os.environ.get("TUNIX_PYTHON"), help="Python with google-tunix; or TUNIX_PYTHON")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="limit of a row; longer ones are left out")
    parser.add_argument("--steps", type=int, default=6, help="of a training, the first among them, which is not timed")
    parser.add_argument("--tunix-steps", type=int, default=3, help="of Tunix, which runs in the first round only")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores and threads for every side")
    parser.add_argument("--skip", nargs="+", default=[], help="variants to leave out, by the beginning of their names")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that everything runs")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/lm_cpu.json, none with --quick")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.tokens, options.steps, options.tunix_steps, options.rounds = 2, 224, 3, 2, 1
    elif options.json is None:
        options.json = HERE / "results" / "lm_cpu.json"
    return options


class Bench:
    """The trainings of one call: files they share, and what came out of them."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.count = options, folder, 0
        self.pythons = dict(zip(SIDES, (sys.executable, options.torch_python, options.tunix_python), strict=True))
        self.variants = [v for v in VARIANTS if self.pythons[v.side] and not v.name.startswith(tuple(options.skip))]
        self.found: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in self.variants}
        self.failures: list[dict[str, str]] = []
        self.versions: dict[str, Any] = {}

    def prepare(self) -> None:
        """The batches and the adapter that all sides start with."""
        from lm.run_jaxtune import experiment_of, open_session, planned

        from jaxtune.adapter_export import write_adapter

        o = self.options
        experiment = experiment_of(MODEL, "float32", rows=o.rows, tokens=o.tokens, steps=o.steps, rate=o.rate, weight_decay=o.weight_decay)
        session = open_session(experiment)
        self.batches = planned(session, o.steps)
        self.batches.write(self.folder / "batches.npz")
        write_adapter(session, self.folder / "adapter", session.load_base()[0], 0, {})

    def run(self, variant: Variant) -> None:
        """One process."""
        self.count += 1
        folder, options = self.folder / f"{self.count:03d}", self.options
        folder.mkdir()
        job = Job(
            precision=variant.precision, data=str(self.folder / "batches.npz"), model=str(MODEL), adapter=str(self.folder / "adapter"),
            folder=str(folder), steps=min(options.steps, options.tunix_steps) if variant.side == "Tunix" else options.steps,
            rate=options.rate, weight_decay=options.weight_decay, threads=options.threads,
        )  # fmt: skip
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        print(f"{time.strftime('%H:%M:%S')} {variant.name} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
        before = usage()
        with open(folder / "log.txt", "w") as log:
            command = [self.pythons[variant.side], "-m", SIDES[variant.side], str(folder / "job.json")]
            environment = self.environment(variant)
            code = subprocess.run(command, cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code or not job.output.exists():
            lines = (folder / "log.txt").read_text().strip().splitlines()
            self.failures.append({"job": variant.name, "error": lines[-1] if lines else f"exit code {code}"})
            print("\n".join(lines[-15:]), file=sys.stderr)
            return
        outcome = json.loads(job.output.read_text())
        self.versions[variant.side] = outcome.pop("versions")
        self.found[variant.name].append({**outcome, **shares(before, usage())})

    def environment(self, variant: Variant) -> dict[str, str]:
        """Nothing reaches for the network; jaxtune's memory is handed out as its commands see to."""
        from jaxtune.cli.process import VARIABLE, wish

        own: dict[str, str] = {}
        if variant.side == "jaxtune":
            own = {VARIABLE: wish(["train"], {}, sys.platform, accelerated=False) or "", "PYTHONPATH": str(HERE.parent)}
        threads = str(self.options.threads)
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own | {
            "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        return {name: summary(outcomes, self.batches.real_tokens) for name, outcomes in self.found.items() if outcomes}


def summary(rounds: list[dict[str, Any]], real_tokens: list[int]) -> dict[str, Any]:
    """Tokens without padding a second, of every step but the first; losses of the first round (the others must repeat them)."""
    each = [[n / s for n, s in zip(real_tokens[1:], outcome["step_seconds"][1:], strict=False)] for outcome in rounds]
    every = [speed for found in each for speed in found]
    low, high = np.percentile(every, [10, 90])
    return {
        "tokens_per_second": round(median(every), 1),
        "tokens_per_second_p10": round(float(low), 1),
        "tokens_per_second_p90": round(float(high), 1),
        "rounds": [round(median(found), 1) for found in each],
        "step_seconds": round(median(s for outcome in rounds for s in outcome["step_seconds"][1:]), 3),
        "cpu_seconds": round(median(s for outcome in rounds for s in outcome["cpu_seconds"][1:]), 3),
        "timed_steps": len(every),
        "until_first_step_seconds": [outcome["step_seconds"][0] for outcome in rounds],
        "peak_gib": round(max(outcome["peak_bytes"] for outcome in rounds) / 2**30, 2),
        "losses": rounds[0]["losses"],
        "losses_of_rounds_differ_by": max(abs(a - b) for one in rounds for a, b in zip(rounds[0]["losses"], one["losses"], strict=True)),
        "process_seconds": [outcome["process_seconds"] for outcome in rounds],
        "others_share": [outcome["others_share"] for outcome in rounds],
    }


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """How many times the tokens per second of the other side jaxtune has; and how far their losses are apart."""
    out = {}
    for variant in VARIANTS:
        mine, theirs = found.get(f"jaxtune, {variant.precision}"), found.get(variant.name)
        if variant.side == "jaxtune" or mine is None or theirs is None:
            continue
        pairs = list(zip(mine["losses"], theirs["losses"], strict=False))
        out[variant.name] = {
            "ratio": round(mine["tokens_per_second"] / theirs["tokens_per_second"], 2),
            "rounds": [round(a / b, 2) for a, b in zip(mine["rounds"], theirs["rounds"], strict=False)],
            "losses_differ_by": [round(abs(a - b), 5) for a, b in pairs],
        }
    return out


def table(result: dict[str, Any]) -> dict[str, Any]:
    """For the documentation."""
    settings, rows = result["settings"], []
    for name, one in result["variants"].items():
        ratio = result["ratios"].get(name, {}).get("ratio")
        rows.append(
            [
                name, f"{one['tokens_per_second']:.0f} ({', '.join(f'{speed:.0f}' for speed in one['rounds'])})",
                f"{one['tokens_per_second_p10']:.0f} to {one['tokens_per_second_p90']:.0f}", f"{one['step_seconds']:.2f}",
                "" if ratio is None else f"{ratio:.2f}", f"{one['until_first_step_seconds'][0]:.0f}", f"{one['peak_gib']:.1f}",
                " ".join(f"{loss:.4f}" for loss in one["losses"]),
            ]
        )  # fmt: skip
    columns = [
        "side", "tokens a second (rounds)", "p10 to p90", "seconds a step", "jaxtune is faster by", "seconds to the end of step 1", "peak GiB",
        "loss, step by step",
    ]  # fmt: skip
    versions = result["versions"]
    told = "; ".join(
        f"{side}: " + ", ".join(f"{package} {versions[side][package]}" for package in packages if package in versions[side])
        for side, packages in (("jaxtune", ("jax",)), ("transformers + peft", ("torch", "transformers", "peft")), ("Tunix", ("google-tunix", "jax")))
        if side in versions
    )  # fmt: skip
    note = (
        f"LoRA of rank 16 on all linear layers of the blocks of SmolLM2-135M-Instruct, {settings['rows']} x {settings['tokens']} tokens a step "
        f"({result['real_tokens']:.0%} of them real, {result['learned_tokens']:.1%} learned), padding not counted, same batches, first adapter and AdamW "
        f"at rate {settings['rate']:g}; processes of their own, {settings['rounds']} alternating rounds of {settings['steps']} steps, the first not timed "
        f"(`benchmarks/lm_cpu.py`, {result['date'][:10]}, {result['machine']['cpu']}, {settings['threads']} cores; {told})."
    )
    busiest = max((share or 0.0 for one in result["variants"].values() for share in one["others_share"]), default=0.0)
    if busiest > BUSY:
        note += f" OTHER PROCESSES HAD UP TO {busiest:.0%} OF THE MACHINE: no measurement."
    return {"title": "LoRA of a small language model on the CPU", "columns": columns, "rows": rows, "note": note}


def main() -> None:
    options = parse()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "torch_python", "tunix_python")}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lm_cpu_") as folder:
        os.environ["JAXTUNE_CACHE"] = str(Path(folder) / "cache")  # compiled programs are made anew in the first round
        bench = Bench(options, Path(folder))
        bench.prepare()
        result: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "machine": machine(), "settings": settings,
            "commit": commit(), "load_before": os.getloadavg(), "real_tokens": float(bench.batches.mask.mean()),
            "learned_tokens": float(bench.batches.weight.sum() / bench.batches.mask.sum()),
        }  # fmt: skip
        for number in range(options.rounds):
            for variant in bench.variants[:: 1 if number % 2 == 0 else -1]:
                if number and variant.side == "Tunix":
                    continue
                bench.run(variant)
                result |= {"versions": bench.versions, "failures": bench.failures, "variants": bench.summary()}
                result["ratios"] = ratios(result["variants"])
                result |= {"table": table(result), "wall_seconds": time.perf_counter() - began}
                if options.json is not None:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in [result["table"]["columns"], *result["table"]["rows"]]:
        print("  ".join(str(cell).ljust(27) for cell in row))
    print(result["table"]["note"])
    for name, one in result["ratios"].items():
        print(f"jaxtune against {name}: {one['ratio']} (rounds {one['rounds']}), losses apart by {one['losses_differ_by']}")
    for failure in result["failures"]:
        print(f"FAILED {failure['job']}: {failure['error']}")


if __name__ == "__main__":
    main()
