"""What a checkpoint may lack, and what it must not: typed errors that say what was found and what was expected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import parity_cases as cases
import pytest
from safetensors.numpy import load_file, save_file

from jaxtune.core.errors import ConfigError, ModelError, UnsafeInputError
from jaxtune.models.load import check_licence, open_base

Tensors = dict[str, np.ndarray]


def changed_copy(source: str, folder: Path, change: Callable[[Tensors], Any] | None = None, **config: Any) -> Path:
    """A reference checkpoint with other tensors or config keys (None takes one away)."""
    shutil.copytree(cases.REFERENCES / source, folder, ignore=shutil.ignore_patterns("reference.safetensors"))
    if change is not None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
    if config:
        whole = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({key: value for key, value in whole.items() if value is not None}))
    return folder


def test_missing_and_extra_tensors_are_all_named(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["bert.encoder.layer.1.output.dense.bias"], tensors["bert.embeddings.LayerNorm.weight"]
        tensors["bert.encoder.layer.0.adapter.weight"] = np.zeros((2, 3), np.float32)

    folder = changed_copy("bert", tmp_path / "m", change)
    with pytest.raises(ModelError) as caught:
        cases.load_folder(folder, 3)
    assert [problem.removeprefix(f"{folder}: ") for problem in sorted(caught.value.problems)] == [
        "parameter embeddings.norm.scale has no tensor bert.embeddings.LayerNorm.weight in the checkpoint",
        "parameter layers.1.down.bias has no tensor bert.encoder.layer.1.output.dense.bias in the checkpoint",
        "tensor bert.encoder.layer.0.adapter.weight [2, 3] belongs to no parameter",
    ]


def test_a_layer_beyond_the_config_is_an_extra_tensor(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor bert.encoder.layer.2.output.dense.weight \[32, 40\] belongs to no parameter"):
        cases.load_folder(changed_copy("bert", tmp_path / "m", num_hidden_layers=2), 3)


def test_shapes_are_judged_from_the_headers(tmp_path: Path) -> None:
    folder = changed_copy("bert", tmp_path / "m", intermediate_size=48)
    with pytest.raises(ModelError) as caught:
        cases.load_folder(folder, 3)
    assert len(caught.value.problems) == 9  # three layers; up's kernel and bias and down's kernel
    assert (
        f"{folder}: tensor bert.encoder.layer.2.output.dense.weight [32, 40] does not fit parameter layers.2.down.kernel [48, 32] "
        "by 'embed mlp -> mlp embed'; config.json and the weights disagree"
    ) in caught.value.problems


def test_another_number_of_classes_needs_a_new_head() -> None:
    with pytest.raises(ModelError, match=r"tensor classifier.weight \[3, 32\] does not fit .*another number of classes needs a new head"):
        cases.load_folder(cases.REFERENCES / "bert", 4)
    it = cases.load_folder(cases.REFERENCES / "bert", 4, new_head=True)
    assert it.plan.fresh == {"head.out.kernel", "head.out.bias"}
    assert set(it.plan.ignored) == {"classifier.weight", "classifier.bias"}
    assert it.values["head.out.kernel"].shape == (32, 4) and np.asarray(it.values["head.out.kernel"]).any()


@pytest.mark.parametrize(
    ("name", "fresh"), [("bert_bare", "head"), ("bert_bare_no_pooler", "head pooler"), ("bert_pretraining", "head"), ("vit_bare", "head")]
)
def test_bare_checkpoints_get_a_new_head(name: str, fresh: str) -> None:
    it = cases.load_folder(cases.REFERENCES / name, 5, new_head=True)
    assert {key.split(".")[0] for key in it.plan.fresh} == set(fresh.split())
    logits = cases.logits_of(it, cases.batch_of(name))
    assert logits.shape == (3, 5) and np.isfinite(logits).all()
    again = cases.load_folder(cases.REFERENCES / name, 5, new_head=True)
    for key in it.plan.fresh:
        np.testing.assert_array_equal(it.values[key], again.values[key], err_msg=f"{key}: not a function of the seed")


def test_half_a_head_is_damage(tmp_path: Path) -> None:
    folder = changed_copy("bert", tmp_path / "m", lambda tensors: tensors.pop("classifier.bias"))
    with pytest.raises(ModelError, match=r"parameter head.out.bias has no tensor classifier.bias"):
        cases.load_folder(folder, 3)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("bert", "use_rotary", True, 'config.json: bert does not know the key "use_rotary" (=True)'),
        ("bert", "hiden_size", 64, 'config.json: bert does not know the key "hiden_size" (=64); did you mean "hidden_size"?'),
        ("bert", "is_decoder", True, "config.json: is_decoder=True is not supported by bert; expected False"),
        (
            "bert",
            "position_embedding_type",
            "relative_key",
            "config.json: position_embedding_type='relative_key' is not supported by bert; expected 'absolute'",
        ),
        ("vit", "qkv_biass", False, 'config.json: vit does not know the key "qkv_biass" (=False); did you mean "qkv_bias"?'),
        ("resnet", "dilation", 3, 'config.json: resnet does not know the key "dilation" (=3)'),
    ],
)
def test_config_keys_that_would_change_the_model_are_refused(tmp_path: Path, name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        open_base(str(changed_copy(name, tmp_path / "m", **{key: value})))
    assert caught.value.problems == (message,)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("bert", {"num_attention_heads": 5}, "config.json: hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("distilbert", {"n_heads": 5}, "config.json: dim 32 is not a multiple of n_heads 5"),
        ("vit", {"num_attention_heads": 5}, "config.json: hidden_size 32 is not a multiple of num_attention_heads 5"),
        ("vit", {"patch_size": 20}, "config.json: image_size 16 is smaller than patch_size 20"),
        ("resnet", {"layer_type": "wide"}, 'config.json: layer_type "wide" is not supported (known: basic, bottleneck)'),
        ("resnet", {"depths": [1]}, "config.json: hidden_sizes [16, 32] and depths [1] must have one number per stage each"),
    ],
)
def test_impossible_sizes(tmp_path: Path, name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        cases.load_folder(changed_copy(name, tmp_path / "m", **config), 3)
    assert caught.value.problems == (message,)


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "resnet"])
def test_unknown_activation(tmp_path: Path, name: str) -> None:
    key = "activation" if name == "distilbert" else "hidden_act"
    with pytest.raises(ModelError, match=r'config.json: activation "snake" is not supported \(known: gelu, '):
        cases.load_folder(changed_copy(name, tmp_path / "m", **{key: "snake"}), 3)


def test_unknown_family(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'model_type "robert" has no family; did you mean "roberta"\?'):
        open_base(str(changed_copy("bert", tmp_path / "m", model_type="robert")))


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"no config.json \(found: notes.txt\)"):
        open_base(str(empty))
    (empty / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: not valid JSON"):
        open_base(str(empty))
    (empty / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r'config.json: no "model_type"'):
        open_base(str(empty))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = changed_copy("bert", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*.safetensors file. pytorch_model.bin is a pickle file, which can run code"):
        cases.load_folder(folder, 3)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    file = changed_copy("bert", tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors: damaged safetensors file \(.*\); download or export it again"):
        cases.load_folder(file.parent, 3)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["bert.pooler.dense.weight"][3, 4] = np.nan
        tensors["bert.encoder.layer.1.output.dense.bias"][0] = np.inf

    with pytest.raises(ModelError) as caught:
        cases.load_folder(changed_copy("bert", tmp_path / "m", change), 3)
    assert sorted(caught.value.problems) == [
        f"tensor {name} holds values that are not finite; the checkpoint is damaged"
        for name in ("bert.encoder.layer.1.output.dense.bias", "bert.pooler.dense.weight")
    ]


def sharded(folder: Path, names: tuple[str, str]) -> Path:
    """The checkpoint in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = sorted(tensors)[: len(tensors) // 2]
    parts = ({name: tensors[name] for name in half}, {name: tensors[name] for name in tensors if name not in half})
    for file, part in zip(names, parts, strict=True):
        save_file(part, folder / file)
    weight_map = {name: file for file, part in zip(names, parts, strict=True) for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    folder = sharded(changed_copy("bert", tmp_path / "m"), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    found = cases.load_folder(folder, 3).values
    for key, value in cases.loaded("bert").values.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    folder = sharded(changed_copy("bert", tmp_path / "m"), ("model-1.safetensors", "model-2.safetensors"))
    (folder / "model-2.safetensors").rename(outside)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-2.safetensors", "../outside.safetensors"))
    with pytest.raises(UnsafeInputError, match=r"shard name '../outside.safetensors' may not leave the folder"):
        cases.load_folder(folder, 3)
    index.write_text(index.read_text().replace("../outside.safetensors", "model-2.safetensors"))
    with pytest.raises(ModelError, match=r"shard model-2.safetensors is missing"):
        cases.load_folder(folder, 3)
    index.write_text('{"weights": 1}')
    with pytest.raises(ModelError, match=r"index.json: damaged \(KeyError\('weight_map'\)\)"):
        cases.load_folder(folder, 3)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = sharded(changed_copy("bert", tmp_path / "m"), ("model-1.safetensors", "model-2.safetensors"))
    double = load_file(folder / "model-2.safetensors") | {"classifier.bias": np.zeros(3, np.float32)}
    double["bert.embeddings.LayerNorm.bias"] = np.zeros(32, np.float32)
    save_file(double, folder / "model-2.safetensors")
    with pytest.raises(ModelError, match=r"tensor bert.embeddings.LayerNorm.bias is also in model-1.safetensors"):
        cases.load_folder(folder, 3)


def test_names_and_buffers_of_old_checkpoints(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(24)[None]

    found = cases.load_folder(
        changed_copy("bert", tmp_path / "m", change, gradient_checkpointing=False, dtype=None, torch_dtype="float32"), 3
    )
    assert found.plan.ignored == ("bert.embeddings.position_ids",)
    for key, value in cases.loaded("bert").values.items():
        np.testing.assert_array_equal(found.values[key], value, err_msg=key)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_checkpoints(tmp_path: Path, dtype: Any) -> None:
    def change(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    found = cases.load_folder(changed_copy("bert", tmp_path / "m", change), 3)
    for key, value in cases.loaded("bert").values.items():
        assert found.values[key].dtype == np.float32
        np.testing.assert_array_equal(found.values[key], np.asarray(value).astype(dtype).astype(np.float32), err_msg=key)


def test_licence_of_the_model_card(tmp_path: Path) -> None:
    folder = changed_copy("bert", tmp_path / "m")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    base = open_base(str(folder))
    assert base.licence == "apache-2.0" and base.labels == ("calm", "glad", "sad")
    check_licence(base, ("apache-2.0", "mit"))
    check_licence(base, None)
    with pytest.raises(ConfigError, match=r"found apache-2.0; allowed_licences is mit"):
        check_licence(base, ("mit",))
    with pytest.raises(ConfigError, match="found no licence in its model card"):
        check_licence(open_base(str(cases.REFERENCES / "bert")), ("mit",))


def test_fingerprint_sees_one_changed_bit(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["classifier.bias"][0] = np.nextafter(tensors["classifier.bias"][0], 1)

    same, other = changed_copy("bert", tmp_path / "same"), changed_copy("bert", tmp_path / "other", change)
    checkpoints = [open_base(str(folder)).checkpoint for folder in (cases.REFERENCES / "bert", same, other)]
    prints = [checkpoint.fingerprint for checkpoint in checkpoints if checkpoint is not None]
    assert prints[0] == prints[1] != prints[2]
