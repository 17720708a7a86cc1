"""PEFT folders: what is read is written again bit for bit, fused layers keep their function, and what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import adapter_cases as adapters
import numpy as np
import parity_cases as cases
import pytest
from adapter_cases import ADAPTERS, adapted
from safetensors.numpy import load_file, save_file

from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.layers.linear import Form
from jaxtune.models.adapters import sizes
from jaxtune.models.peft import Peft, PeftFolder
from jaxtune.models.peft_write import unsaveable, write
from jaxtune.models.weights import Table, Weight

BERT = cases.REFERENCES / "bert"


@pytest.mark.parametrize("name", adapters.NAMES)
def test_read_and_written_again(name: str, tmp_path: Path) -> None:
    base = adapters.base_of(name)
    it = adapted(cases.REFERENCES / base, Peft(path=str(ADAPTERS / name)), 3 if base == "bert" else "language")
    saved = frozenset({"head.out.kernel", "head.out.bias"} if name.endswith("head") else ())
    write(tmp_path / "out", it.it.base, it.it.table, sizes(it.module), it.forms, it.it.values, saved=saved)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (ADAPTERS / name, tmp_path / "out"))
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        np.testing.assert_array_equal(after[tensor], value, err_msg=tensor)
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (ADAPTERS / name, tmp_path / "out")]
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "fan_in_fan_out"):
        assert configs[0].get(key) == configs[1].get(key), key
    again = PeftFolder.open(tmp_path / "out", it.it.base, True)
    assert again.forms(sizes(it.module)) == it.attachment.forms(sizes(it.module))  # type: ignore[union-attr]


# -- fused layers -----------------------------------------------------------------------------------------------------------

FUSED = {
    "gpt2": Weight(("l.{i}.q", "l.{i}.k", "l.{i}.v"), "h.{i}.qkv.weight", "inputs (stack out) -> stack inputs out"),
    "neox": Weight(("l.{i}.q", "l.{i}.k", "l.{i}.v"), "h.{i}.qkv.weight", "(out stack each) inputs -> stack inputs (out each)", sizes=(("out", 2), ("each", 4))),
    "phi3": Weight(("l.{i}.q", "l.{i}.k", "l.{i}.v"), "h.{i}.qkv.weight", "out inputs -> inputs out", parts=(12, 8, 4)),
}  # fmt: skip
SIZES = {"gpt2": (8, 8, 8), "neox": (8, 8, 8), "phi3": (12, 8, 4)}


def fused(layout: str) -> tuple[Any, Table, dict[str, tuple[int, int]]]:
    row = FUSED[layout]
    rows = (Weight(tuple(f"{path}.kernel" for path in row.paths), row.hf, row.layout, row.parts, row.many, row.sizes),)
    base = SimpleNamespace(family=SimpleNamespace(rows=lambda: rows, prefix="m."), reference="base")
    return base, Table(rows), {f"l.0.{name}": (6, size) for name, size in zip("qkv", SIZES[layout], strict=True)}


@pytest.mark.parametrize("layout", FUSED)
@pytest.mark.parametrize("kind", ["lora", "dora", "some", "ia3"])
def test_fused_layers_compute_the_same_and_come_back(layout: str, kind: str, tmp_path: Path) -> None:
    base, table, linears = fused(layout)
    random = np.random.default_rng(0)
    ranks = {"l.0.q": 3, "l.0.k": 2, "l.0.v": 4} if kind != "some" else {"l.0.q": 3, "l.0.v": 2}
    if kind == "ia3":
        forms = {name: Form(scale_out=True) for name in ("l.0.k", "l.0.v")}
        values = {f"{name}.scale_out": random.standard_normal(linears[name][1]).astype(np.float32) for name in forms}
    else:
        forms = {name: Form(rank=rank, alpha=2.0 * rank, magnitude=kind == "dora") for name, rank in ranks.items()}
        values = {}
        for name, form in forms.items():
            values[f"{name}.lora_a"] = random.standard_normal((6, form.rank)).astype(np.float32)
            values[f"{name}.lora_b"] = random.standard_normal((form.rank, linears[name][1])).astype(np.float32)
            if kind == "dora":
                values[f"{name}.magnitude"] = random.standard_normal(linears[name][1]).astype(np.float32)
    write(tmp_path / "out", base, table, linears, forms, values)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == (layout == "gpt2")
    start = "base_model.model.m.h.0.qkv."
    if kind == "ia3":
        theirs = np.broadcast_to(tensors[f"{start}ia3_l"], (sum(SIZES[layout]), 6))  # [outputs, inputs]
    else:
        theirs = config["lora_alpha"] / config["r"] * tensors[f"{start}lora_B.weight"] @ tensors[f"{start}lora_A.weight"]
    theirs = theirs.T if layout == "gpt2" else theirs
    for part, name in enumerate(linears):
        ours = table.place(f"{name}.kernel").row.to_ours([theirs], linears[name], part)
        if kind == "ia3":
            wanted = np.broadcast_to(values[f"{name}.scale_out"] if name in forms else np.ones(linears[name][1]), linears[name])
        else:
            wanted = 2.0 * values[f"{name}.lora_a"] @ values[f"{name}.lora_b"] if name in forms else np.zeros(linears[name])
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)
    again = PeftFolder.open(tmp_path / "out", base, True)
    numbers = again.numbers(linears, {})
    if kind != "ia3":
        assert again.forms(linears) == forms
        assert numbers.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(numbers[name], value, err_msg=name)


@pytest.mark.parametrize("layout", FUSED)
def test_a_foreign_adapter_of_a_fused_layer(layout: str, tmp_path: Path) -> None:
    """Every part takes the whole A and its rows of B; written again it is the one matrix that it was."""
    base, table, linears = fused(layout)
    random = np.random.default_rng(0)
    start = "base_model.model.m.h.0.qkv."
    outputs = sum(SIZES[layout])
    tensors = {f"{start}lora_A.weight": random.standard_normal((3, 6)), f"{start}lora_B.weight": random.standard_normal((outputs, 3))}
    write_folder(tmp_path / "in", {name: value.astype(np.float32) for name, value in tensors.items()})
    folder = PeftFolder.open(tmp_path / "in", base, True)
    forms = folder.forms(linears)
    assert {form.rank for form in forms.values()} == {3} and len(forms) == 3
    write(tmp_path / "out", base, table, linears, forms, folder.numbers(linears, {}))
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_what_the_format_has_no_place_for() -> None:
    _, table, linears = fused("phi3")
    dora = Form(rank=2, magnitude=True)
    assert "DoRA must target all of them" in unsaveable(table, linears, {"l.0.q": dora}, frozenset())[0]
    assert "IA3 only their outputs" in unsaveable(table, linears, {"l.0.q": Form(scale_in=True)}, frozenset())[0]
    assert not unsaveable(table, linears, {"l.0.q": Form(rank=2)}, frozenset())
    (problem,) = unsaveable(table, linears, {"l.0.q": Form(rank=2)}, frozenset({"l.0.q.kernel"}))
    assert problem.startswith("l.0.q.kernel: peft's format has no place for a trained kernel under an adapter")


# -- refusals ---------------------------------------------------------------------------------------------------------------


def write_folder(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA' is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base's weights too"),
        ({"target_parameters": ["experts"]}, "target_parameters=['experts'] is not supported"),
        ({"lora_bias": True}, "lora_bias=True is not supported"),
        ({"r": None}, '"r" is missing'),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path: Path, config: dict[str, Any], text: str) -> None:
    write_folder(tmp_path / "in", {}, **config)
    with pytest.raises(ModelError) as caught:
        adapted(BERT, Peft(path=str(tmp_path / "in")))
    assert text in str(caught.value)


def test_tensors_that_fit_nothing_are_named(tmp_path: Path) -> None:
    good = load_file(ADAPTERS / "bert_lora" / "adapter_model.safetensors")
    config = json.loads((ADAPTERS / "bert_lora" / "adapter_config.json").read_text())
    strange = {**good, "base_model.model.bert.nothing.lora_A.weight": np.zeros((4, 32), np.float32)}
    write_folder(tmp_path / "strange", strange, **config)
    with pytest.raises(ModelError, match=r"tensor base_model.model.bert.nothing.lora_A.weight \[4, 32\] fits nothing in this model"):
        adapted(BERT, Peft(path=str(tmp_path / "strange")))
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    write_folder(tmp_path / "thin", {**good, name: good[name][:, :-1]}, **config)
    with pytest.raises(ModelError, match=r"query: A \[4, 31\] and B \[32, 4\] do not fit a layer of 32 inputs and 32 outputs"):
        adapted(BERT, Peft(path=str(tmp_path / "thin")))
    write_folder(tmp_path / "half", {key: value for key, value in good.items() if key != name}, **config)
    with pytest.raises(ModelError, match=r"query: found lora_B.weight; expected lora_A.weight, lora_B.weight"):
        adapted(BERT, Peft(path=str(tmp_path / "half")))
    broken = good[name].copy()
    broken[0, 0] = np.nan
    write_folder(tmp_path / "nan", {**good, name: broken}, **config)
    with pytest.raises(ModelError, match="holds values that are not finite"):
        adapted(BERT, Peft(path=str(tmp_path / "nan")))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no adapter_config.json and no adapter_model.safetensors; adapter_model.bin is a pickle file"):
        adapted(BERT, Peft(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model.adapter.path"):
        adapted(BERT, Peft(path=str(tmp_path / "missing")))
    with pytest.raises(ConfigError, match=r"model.adapter.dropout: has no effect on IA3"):
        adapted(BERT, Peft(path=str(ADAPTERS / "bert_ia3"), dropout=0.1))
