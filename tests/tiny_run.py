"""A tiny experiment on disk, model folder, corpus and YAML: a whole run takes seconds, and the model learns something.

It has everything that a resumed run could get wrong: two phases with other parameters, dropout, shuffling, random deletion, averaged
weights, skipped steps, early stopping and plateau.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
REFERENCES = TESTS / "references"
CACHE = TESTS.parent / ".cache" / "tests"
LABELS = {
    "market": ("price", "shop", "market", "people", "old"),
    "screen": ("film", "story", "actor", "music", "book"),
    "sport": ("team", "game", "win", "lose", "play"),
}
OTHER_WORDS = (
    "the",
    "an",
    "and",
    "is",
    "was",
    "of",
    "in",
    "on",
    "to",
    "with",
    "for",
    "it",
    "this",
    "that",
    "very",
    "good",
    "bad",
    "great",
    "new",
    "not",
)

EXPERIMENT = """\
name: tiny
seed: 3
model: {base: model, dtype: float32}
task:
  kind: text_classification
  loss: {kind: "tiny_parts:Stumbling", example: 0}
  metrics: [accuracy, f1, expected_calibration_error]
  best: f1
data:
  source: {kind: text_folder, path: texts}
  split: {kind: stratified, by: label, validation: 0.2, test: 0.2}
  augment: [{kind: "tiny_parts:SlowDeletion", share: 0.1, seconds: 0.0}]
  max_tokens: 20
  widths: [20]
  batch_size: 16
phases:
  - train: ["head.*"]
    epochs: 2
    optimizer: {kind: adamw, schedule: {kind: constant, rate: 1.0e-2}}
    stopping: [{kind: plateau, patience: 1}]
  - train: ["*", "!embeddings.*", "embeddings.token.*"]
    epochs: 9
    average: 0.7
    optimizer: {kind: adamw, weight_decay: 0.01, layer_decay: 0.9, schedule: {kind: cosine, peak: 3.0e-3, warmup: 0.1}}
    stopping: [{kind: early_stopping, patience: 4}, {kind: plateau, patience: 3}]
evaluation: {every_steps: 3}
checkpoint: {every_steps: 4}
"""


def write_all(folder: Path) -> Path:
    """`model/`, `texts/`, `tiny_parts.py` and `tiny.yaml` in a folder; it returns the experiment."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "model")
    write_corpus(folder / "texts")
    shutil.copy(TESTS / "tiny_parts.py", folder)
    (folder / "tiny.yaml").write_text(EXPERIMENT)
    return folder / "tiny.yaml"


def write_model(folder: Path, name: str = "bert") -> Path:
    """A recorded checkpoint with the recorded tokenizer beside it: a complete Hugging Face folder."""
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCES / name / file, folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(REFERENCES / "tokenizer" / file, folder)
    return folder


def write_corpus(folder: Path, each: int = 40) -> Path:
    """A text folder of three topics; most words belong to the topic, the others to none."""
    dice = random.Random(0)
    for label, own in LABELS.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            words = [dice.choice(own if dice.random() < 0.6 else OTHER_WORDS) for _ in range(dice.randint(3, 18))]
            (folder / label / f"{number:02}.txt").write_text(" ".join(words))
    return folder


def copy(folder: Path, to: Path) -> Path:
    """An experiment with its runs, to be changed."""
    shutil.copytree(folder, to)
    return to


def environment(devices: int = 1) -> dict[str, str]:
    """For commands in a process of their own: CPU, as many devices as wanted, compiled programs kept in the checkout."""
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COLUMNS")}
    ours = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAXTUNE_CACHE": str(CACHE), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TESTS.parent)}
    return {**kept, **ours}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "jaxtune", *map(str, words)]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    processor_seconds: float

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Done:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    @property
    def told(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Trained:
    """What `jaxtune train tiny.yaml --json` left behind. Tests read it and change nothing."""

    folder: Path  # of the experiment
    done: tiny_run.Done

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


def run(*words: object, folder: Path, devices: int = 1) -> Done:
    """`jaxtune WORDS` in a process of its own, in `folder`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command(*words), cwd=folder, env=environment(devices), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return Done(process.returncode, out.read(), err.read(), usage.ru_utime + usage.ru_stime)
