"""Finished runs from Python: the model, its answers for new data in every form, its export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from tiny_run import Trained

import jaxtune
from jaxtune.api import LoadedModel
from jaxtune.core.errors import ConfigError, NoCheckpointError
from jaxtune.data.sources.csv_file import CsvFile
from jaxtune.data.sources.in_memory import InMemory

TEXTS = ["the film was a great story", "team win game", "old price of the shop"]
BEST = ["screen", "sport", "market"]


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.folder)
        return jaxtune.load_model(trained.run)


@pytest.fixture(autouse=True)
def here(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.folder)


def said(loaded: LoadedModel, found: object) -> list[str]:
    return [loaded.names[int(best)] for best in found.probabilities.argmax(1)]  # type: ignore[attr-defined]


def test_names_and_step(loaded: LoadedModel, trained: Trained):
    assert loaded.names == tuple(tiny_run.LABELS)
    assert loaded.step == json.loads((trained.run / "result.json").read_text())["best_step"]


def test_texts_records_files_and_sources_have_the_same_answers(loaded: LoadedModel, tmp_path: Path):
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    records = [{"text": text} for text in TEXTS]
    ways = [TEXTS, records, str(tmp_path / "new.csv"), CsvFile(path=str(tmp_path / "new.csv")), InMemory(records=tuple(records))]
    found = [jaxtune.predict(loaded, way) for way in ways]
    for one in found:
        assert said(loaded, one) == BEST and list(one.ids) == [0, 1, 2]
        np.testing.assert_array_equal(one.probabilities, found[0].probabilities)
    np.testing.assert_allclose(found[0].probabilities.sum(1), 1, rtol=1e-5)


def test_a_run_folder_can_be_named_instead(loaded: LoadedModel, trained: Trained):
    np.testing.assert_array_equal(jaxtune.predict(trained.run, TEXTS).logits, jaxtune.predict(loaded, TEXTS).logits)


def test_an_answer_does_not_depend_on_its_neighbours(loaded: LoadedModel):
    many = jaxtune.predict(loaded, TEXTS * 13)
    alone = jaxtune.predict(loaded, TEXTS[1:2])
    for row in range(1, 39, 3):
        np.testing.assert_allclose(many.logits[row], alone.logits[0], atol=1e-5)


def test_the_module_is_an_ordinary_one(loaded: LoadedModel):
    module = loaded.module
    tokens = np.array([[2, 100, 3]], np.int32)
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens)}
    with loaded.session.placement.active():
        logits = module.head(module(jax.device_put(batch)))  # type: ignore[operator]
    assert logits.shape == (1, 3) and np.isfinite(np.asarray(logits)).all()


def test_another_checkpoint(trained: Trained):
    first, last = (jaxtune.load_model(trained.run, which) for which in ("best", "latest"))
    assert first.step < last.step
    assert jaxtune.load_model(trained.run, last.step).step == last.step
    with pytest.raises(NoCheckpointError, match=r"has no checkpoint 999 \(there are: \d+, "):
        jaxtune.load_model(trained.run, 999)


def test_evaluation_gives_predictions_too(trained: Trained):
    found = jaxtune.evaluate(trained.run, "validation")
    assert found.predictions is not None and len(found.predictions.ids) == 24
    assert found.metrics["accuracy"] == json.loads((trained.run / "result.json").read_text())["validation"]["accuracy"]
    with pytest.raises(ConfigError, match='"dev" does not exist'):
        jaxtune.evaluate(trained.run, "dev")


def test_the_training_data_are_not_needed(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved = tiny_run.copy(trained.folder, tmp_path / "moved")
    shutil.rmtree(moved / "texts")
    monkeypatch.chdir(moved)
    loaded = jaxtune.load_model("runs/tiny")
    assert said(loaded, jaxtune.predict(loaded, TEXTS)) == BEST
    jaxtune.export_model("runs/tiny", "out")
    assert Path("out/model.safetensors").read_bytes() == Path("runs/tiny/export/model.safetensors").read_bytes()


def test_another_base_is_noticed(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.numpy import load_file, save_file

    moved = tiny_run.copy(trained.folder, tmp_path / "moved")
    monkeypatch.chdir(moved)
    tensors = load_file("model/model.safetensors")
    tensors["bert.pooler.dense.bias"] += 1
    save_file(tensors, "model/model.safetensors")
    with pytest.raises(ConfigError, match="the base model's files changed since the checkpoint was made"):
        jaxtune.load_model("runs/tiny")


def test_the_export_is_a_base_again(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run whose base is the export keeps its head, and starts where the other ended."""
    experiment = tiny_run.write_all(tmp_path / "next")
    monkeypatch.chdir(experiment.parent)
    phases = "[{steps: 1, train: [head.*], optimizer: {kind: sgd, schedule: {kind: constant, rate: 1.0e-9}}}]"
    words = [f"model.base={trained.run / 'export'}", f"phases={phases}"]
    found = jaxtune.run(jaxtune.load_experiment(experiment, words))
    assert found.test["accuracy"] == json.loads((trained.run / "result.json").read_text())["test"]["accuracy"]


def test_data_of_another_kind_of_source(loaded: LoadedModel):
    with pytest.raises(ConfigError, match='no column "text"'):
        jaxtune.predict(loaded, [{"txt": "film"}])
