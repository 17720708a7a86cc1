"""The way back: a folder that is bit-equal where nothing was trained, loads again, and says what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import parity_cases as cases
import pytest
from safetensors.numpy import load_file, save_file

from jaxtune.core.errors import ConfigError
from jaxtune.layers import stack
from jaxtune.models.blueprint import Blueprint, Flat
from jaxtune.models.export import export
from jaxtune.models.load import load as load_values
from jaxtune.models.load import maker, open_base, plan_load, shardings
from jaxtune.models.weights import Table

CLASSIFIERS = [name for name in cases.NAMES if "Classification" in cases.INDEX[name]["architecture"]]
BARE = [name for name in cases.NAMES if name not in CLASSIFIERS]


def same_bytes(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("trained", [None, frozenset[str]()], ids=["written", "copied"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_untrained_classifiers_come_back_bit_equal(tmp_path: Path, name: str, trained: frozenset[str] | None) -> None:
    """Both ways: rearranged from our arrays, and copied from the base's files."""
    it = cases.loaded(name)
    folder = export(tmp_path / "out", it.base, it.values, trained=trained)
    same_bytes(load_file(folder / "model.safetensors"), cases.stored(name))
    assert json.loads((folder / "config.json").read_text()) == json.loads((cases.REFERENCES / name / "config.json").read_text())
    processor = "preprocessor_config.json"
    assert (folder / processor).is_file() == (cases.REFERENCES / name / processor).is_file()


@pytest.mark.parametrize("name", BARE)
def test_untrained_bare_models_come_back_bit_equal(tmp_path: Path, name: str) -> None:
    """What belongs to the model: a ViT's pooler and a pretraining head do not, and a pooler that BERT lacked is new."""
    it = cases.loaded(name)
    found = load_file(export(tmp_path / "out", it.base, it.values) / "model.safetensors")
    new = {"pooler.dense.weight", "pooler.dense.bias"} if it.plan.fresh else set()
    assert new == {key for key in found if key not in cases.stored(name)}
    same_bytes({k: v for k, v in found.items() if k not in new}, {k: v for k, v in cases.stored(name).items() if k not in it.plan.ignored})


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "vit", "deit_teacher", "resnet"])
def test_an_export_loads_again_with_equal_values(tmp_path: Path, name: str) -> None:
    it = cases.loaded(name)
    trained = {key: value * 1.5 + 0.25 for key, value in it.values.items()}
    again = cases.load_folder(export(tmp_path / "out", it.base, trained), cases.outputs_of(name))
    assert not again.plan.fresh
    for key, value in trained.items():
        np.testing.assert_array_equal(again.values[key], value, err_msg=key)


def test_only_trained_rows_are_written(tmp_path: Path) -> None:
    """Of a stacked array whose values went through bfloat16, the layer that was trained is new and the others are the base's."""
    it = cases.loaded("bert")
    rounded: Flat = {key: value.astype(jnp.bfloat16) for key, value in it.values.items()}
    trained = frozenset({"layers.1.up.kernel", "head.out.kernel"})
    found = load_file(export(tmp_path / "out", it.base, rounded, trained=trained) / "model.safetensors")
    changed = {name for name, tensor in cases.stored("bert").items() if tensor.tobytes() != found[name].tobytes()}
    assert changed == {"bert.encoder.layer.1.intermediate.dense.weight", "classifier.weight"}
    kernel = np.asarray(rounded["layers.0-2.up.kernel"][1]).astype(np.float32)
    np.testing.assert_array_equal(found["bert.encoder.layer.1.intermediate.dense.weight"], kernel.T)


@pytest.mark.parametrize(
    ("name", "architecture"), [("bert_bare", "BertForSequenceClassification"), ("vit_bare", "ViTForImageClassification")]
)
def test_a_new_head_names_tensors_as_a_classifier_does(tmp_path: Path, name: str, architecture: str) -> None:
    it = cases.load_folder(cases.REFERENCES / name, 4, new_head=True)
    folder = export(
        tmp_path / "out", it.base, it.values, trained=frozenset({"head.out.kernel", "head.out.bias"}), labels=("a", "b", "c", "d")
    )
    config, found = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == [architecture]
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c", "3": "d"} and config["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3}
    prefix = it.base.family.prefix
    body = {prefix + key: value for key, value in cases.stored(name).items() if key not in it.plan.ignored}
    same_bytes({key: value for key, value in found.items() if not key.startswith("classifier.")}, body)
    assert found["classifier.weight"].shape == (4, 32)


def test_unnamed_outputs_are_counted(tmp_path: Path) -> None:
    """A regression has one output; without names transformers would expect two."""
    it = cases.load_folder(cases.REFERENCES / "bert_bare", 1, new_head=True)
    config = json.loads((export(tmp_path / "out", it.base, it.values, problem="regression") / "config.json").read_text())
    assert config["id2label"] == {"0": "LABEL_0"} and config["problem_type"] == "regression"


def test_trained_tensors_are_not_rounded_to_a_half_precision_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((cases.REFERENCES / "bert" / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    halves = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in cases.stored("bert").items()}
    save_file(halves, base / "model.safetensors")
    it = cases.load_folder(base, 3)
    untouched = export(tmp_path / "a", it.base, it.values, trained=frozenset())
    same_bytes(load_file(untouched / "model.safetensors"), halves)
    assert json.loads((untouched / "config.json").read_text())["dtype"] == "bfloat16"
    trained = export(tmp_path / "b", it.base, it.values, trained=frozenset({"head.out.bias"}))
    assert json.loads((trained / "config.json").read_text())["dtype"] == "float32"
    assert load_file(trained / "model.safetensors")["classifier.bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (
            "vit",
            {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "image_size": 8,
                "patch_size": 4,
                "num_channels": 1,
            },
        ),
        ("resnet", {"embedding_size": 4, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic", "num_channels": 1}),
        (
            "electra",
            {
                "hidden_size": 16,
                "embedding_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 24,
                "vocab_size": 30,
            },
        ),
    ],
)
def test_a_new_model_exports_and_loads_again(tmp_path: Path, family: str, config: dict[str, Any]) -> None:
    base = open_base({"family": family, "config": config})
    make = maker(base.family, 3, seed=5, options=stack.StackOptions(), dtype=jnp.float32)
    blueprint, table = Blueprint.of(make), Table(base.family.rows())
    placed = shardings(blueprint, table, cases.one_device())
    values = load_values(base, blueprint, table, plan_load(base, blueprint, table, True), make, placed, lambda key: jnp.float32)
    folder = export(tmp_path / "out", base, values, labels=("a", "b", "c"))
    again = cases.load_folder(folder, 3)
    assert not again.plan.fresh and again.values.keys() == values.keys()
    for key, value in values.items():
        np.testing.assert_array_equal(again.values[key], value, err_msg=key)
    kernels = [np.asarray(value).std() for key, value in values.items() if key.endswith((".kernel", ".embedding"))]
    assert min(kernels) > 0.005
    if family == "resnet":
        counters = [v for k, v in load_file(folder / "model.safetensors").items() if k.endswith("num_batches_tracked")]
        assert len(counters) == 1 + 2 * 3 + 2 and all(v.dtype == np.int64 and v.shape == () and v == 0 for v in counters)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    it = cases.loaded("bert_one_head")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="exists and is not empty; nothing was written"):
        export(folder, it.base, it.values)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_large_models_are_sharded_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtune.models.export.SHARD_BYTES", 20_000)
    it = cases.loaded("bert")
    folder = export(tmp_path / "out", it.base, it.values)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    same_bytes({name: tensor for file in files for name, tensor in load_file(folder / file).items()}, cases.stored("bert"))
    again = cases.load_folder(folder, 3)
    for key, value in it.values.items():
        np.testing.assert_array_equal(again.values[key], value, err_msg=key)
