"""Adapters on real families: equal to `peft`, nothing at the start, the same however stacks are cut and arrays are sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapter_cases as adapters
import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from adapter_cases import ADAPTERS, adapted, logits, shaken, wide_bert
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from jaxtune.core.errors import ConfigError
from jaxtune.layers import stack
from jaxtune.layers.quantized import Quantized, dequantize, quantize
from jaxtune.layers.stack import StackOptions
from jaxtune.models.adapters import Dora, Ia3, Lora, Override
from jaxtune.models.peft import Peft
from jaxtune.parallel.mesh import Mesh

BERT = cases.REFERENCES / "bert"
KINDS: dict[str, Any] = {
    "lora": Lora(rank=4),
    "rslora": Lora(targets=("layers.*.{q,v}",), rank=4, rslora=True, init="gaussian"),
    "ranks": Lora(rank=4, overrides={"*.up": Override(rank=6), "layers.1.*.q": Override(rank=2, alpha=1.0)}),
    "dora": Dora(rank=4),
    "ia3": Ia3(),
}


@pytest.mark.parametrize("name", adapters.NAMES)
def test_outputs_are_those_of_peft(name: str) -> None:
    base = adapters.base_of(name)
    outputs = cases.outputs_of(base) if base == "bert" else "language"
    it = adapted(cases.REFERENCES / base, Peft(path=str(ADAPTERS / name)), outputs)
    batch = cases.batch_of(base)
    found, wanted = logits(it.it, batch), adapters.expected(name)
    if base != "bert":  # positions that nothing looks at may hold anything
        found, wanted = (x[batch["segment_ids"] > 0] for x in (found, wanted))
    assert np.abs(found - wanted).max() <= 1e-5
    assert np.abs(wanted - (cases.reference(base)["logits"] if base == "bert" else 0)).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing(kind: str) -> None:
    batch = cases.batch_of("bert")
    it = adapted(BERT, KINDS[kind])
    plain, found = logits(cases.loaded("bert"), batch), logits(it.it, batch)
    if kind == "dora":  # columns are divided by their lengths and multiplied with them again
        assert np.abs(found - plain).max() <= 2e-6
    else:
        np.testing.assert_array_equal(found, plain)
    assert np.abs(logits(shaken(it).it, batch) - plain).max() > 0.01


def test_numbers_do_not_depend_on_the_cuts() -> None:
    batch = cases.batch_of("bert")
    whole, cut = adapted(BERT, KINDS["lora"]), adapted(BERT, KINDS["lora"], options=StackOptions(cuts=(1,)))
    assert per_layer(whole).keys() == per_layer(cut).keys() and "layers.1-2.attn.q.lora_a" in cut.it.values
    for name, value in per_layer(whole).items():
        np.testing.assert_array_equal(value, per_layer(cut)[name], err_msg=name)
    a = per_layer(whole)
    assert not np.array_equal(a["layers.0.attn.q.lora_a"], a["layers.1.attn.q.lora_a"])
    assert not np.array_equal(a["layers.0.attn.q.lora_a"], a["layers.0.attn.k.lora_a"])
    np.testing.assert_allclose(logits(whole.it, batch), logits(cut.it, batch), atol=1e-6)


def test_layers_with_other_adapters_are_cut_apart() -> None:
    """The same numbers as one stack whose other layers have an adapter of zeros."""
    batch = cases.batch_of("bert")
    some = shaken(adapted(BERT, Lora(targets=("layers.1.*",), rank=4)))
    whole = adapted(BERT, Lora(rank=4))
    assert {key.split(".")[1] for key in some.it.values if key.startswith("layers.")} == {"0-0", "1-1", "2-2"}
    assert "layers.0-0.attn.q.lora_a" not in some.it.values
    values = dict(whole.it.values)
    for key in values:
        if key.endswith(("lora_a", "lora_b")):
            middle = some.it.values[key.replace("0-2", "1-1")]
            values[key] = jnp.zeros_like(values[key]).at[1].set(middle[0])
    same = cases.Loaded(whole.it.base, whole.it.blueprint, whole.it.table, whole.it.plan, values, whole.it.placement)
    np.testing.assert_allclose(logits(some.it, batch), logits(same, batch), atol=2e-6)


def test_ranks_and_scales_by_pattern() -> None:
    it = adapted(BERT, KINDS["ranks"])
    ranks = {name: value.shape[-1] for name, value in per_layer(it).items() if name.endswith("lora_a")}
    assert ranks["layers.1.attn.q.lora_a"] == 2 and ranks["layers.0.attn.q.lora_a"] == 4 and ranks["layers.2.up.lora_a"] == 6
    scales = {path: form.scale for path, form in it.forms.items()}
    assert scales["layers.1-1.attn.q"] == 0.5 and scales["layers.0-0.attn.q"] == 8.0 and scales["layers.0-0.up"] == 32 / 6


@pytest.mark.parametrize(("init", "deviation"), [("kaiming", 1 / np.sqrt(3 * 32)), ("gaussian", 1 / 8)])
def test_the_first_factor_starts_as_in_peft(init: Any, deviation: float) -> None:
    it = adapted(BERT, Lora(targets=("layers.*.{q,k,v,o,up}",), rank=8, init=init))
    drawn = np.concatenate([v.ravel() for name, v in per_layer(it).items() if name.endswith("lora_a")])
    assert abs(drawn.std() / deviation - 1) < 0.05 and abs(drawn.mean()) < 0.05 * deviation
    assert (np.abs(drawn).max() <= 1 / np.sqrt(32)) == (init == "kaiming")


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_sharded_over_eight_devices(kind: str) -> None:
    batch = {key: np.concatenate([value] * 3)[:8] for key, value in cases.batch_of("bert").items()}
    one = shaken(adapted(BERT, KINDS[kind]))
    placement = Mesh(data=2, fsdp=2, tensor=2).build()
    eight = shaken(adapted(BERT, KINDS[kind], placement=placement))
    np.testing.assert_allclose(logits(eight.it, batch), logits(one.it, batch), atol=5e-6)
    if kind == "lora":
        assert eight.it.values["layers.0-2.up.lora_a"].sharding.spec == PartitionSpec(None, ("fsdp",), None)
        assert eight.it.values["layers.0-2.up.lora_b"].sharding.spec == PartitionSpec(None, None, ("tensor",))


# -- quantized --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_bert(tmp_path_factory.mktemp("wide") / "model")


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_quantized_base_computes_with_what_its_codes_stand_for(wide: Path, tmp_path: Path, form: Any, devices: int) -> None:
    """The same as a checkpoint whose kernels were rounded that way before."""
    tensors = load_file(wide / "model.safetensors")
    rounded = dict(tensors)
    for name, value in tensors.items():
        if ".layer." in name and value.ndim == 2:
            rounded[name] = np.asarray(dequantize(*map(jnp.asarray, quantize(value.T, form)))).T.copy()
    (tmp_path / "config.json").write_bytes((wide / "config.json").read_bytes())
    save_file(rounded, tmp_path / "model.safetensors")
    placement = Mesh(data=2, fsdp=2, tensor=2).build() if devices == 8 else None
    it = adapted(wide, KINDS["lora"], quantize=form, placement=placement)
    batch = {key: np.concatenate([value] * 3)[:8] for key, value in cases.batch_of("bert").items()}
    np.testing.assert_allclose(logits(it.it, batch), logits(cases.load_folder(tmp_path, 3), batch), atol=5e-6)
    assert np.abs(logits(it.it, batch) - logits(cases.load_folder(wide, 3), batch)).max() > 1e-3
    kinds = {key: type(variable) for key, variable in it.it.blueprint.variables.items()}
    assert {key for key, kind in kinds.items() if kind is Quantized} == {key for key in kinds if key.endswith((".codes", ".scales"))}
    bytes_of = {end: sum(v.nbytes for key, v in it.it.values.items() if key.endswith(end)) for end in (".codes", ".scales")}
    weights = sum(value.size for name, value in tensors.items() if ".layer." in name and value.ndim == 2)
    assert bytes_of[".codes"] == (weights if form == "int8" else weights // 2)
    if form == "nf4":
        assert bytes_of[".scales"] == weights // 64 * 4


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_dora_starts_from_the_lengths_of_the_quantized_kernel(wide: Path, form: Any) -> None:
    batch = cases.batch_of("bert")
    plain, found = (logits(adapted(wide, adapter, quantize=form).it, batch) for adapter in (None, KINDS["dora"]))
    assert np.abs(plain - found).max() <= 5e-6


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (Lora(targets=("layers.*.query",)), 'model.adapter.targets: "layers.*.query" matches no dense layer'),
        (Lora(targets=("layers.*", "!layers.9.*")), 'model.adapter.targets: "!layers.9.*" matches no dense layer'),
        (Lora(targets=("layers.*.q",), overrides={"*.up": Override(rank=2)}), 'model.adapter.overrides: "*.up" matches no dense layer'),
        (Lora(targets=("q_proj",)), '"q_proj" matches no dense layer; did you mean "*.q"?'),
        (Ia3(inputs=("*.fc2",)), 'model.adapter.inputs: "*.fc2" matches no dense layer'),
    ],
)
def test_patterns_that_match_nothing_are_named(adapter: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adapted(BERT, adapter)
    assert text in str(caught.value) and "*.up" in str(caught.value)


def test_kernels_that_cannot_be_quantized_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"model.quantize: nf4 needs inputs in blocks of 64, but layers.\*.attn.k has 32, layers.*; use int8"
    ):
        adapted(BERT, None, quantize="nf4")
    with pytest.raises(ConfigError, match="has no effect: this family has no dense layers in a stack"):
        adapted(cases.REFERENCES / "resnet", None, quantize="int8")


def test_experts_and_their_router_stay_as_they_are() -> None:
    folder = cases.REFERENCES / "qwen3_moe"
    it = adapted(folder, Lora(rank=4), "language")
    assert it.forms and not [path for path in it.forms if "router" in path or "expert" in path]
    with pytest.raises(ConfigError, match=r"model.quantize: the kernels of experts \(layers.\*.\S+\) cannot be quantized"):
        adapted(folder, None, "language", quantize="int8")


def per_layer(it: adapters.Adapted) -> dict[str, np.ndarray]:
    """What was added, by per-layer name."""
    out = {}
    for key, value in it.it.values.items():
        if key.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude", "scale_in", "scale_out"):
            host = np.asarray(jax.device_get(value))
            out |= {name: host[row] if stack.is_stacked(key) else host for row, name in enumerate(stack.names(key))}
    return out
