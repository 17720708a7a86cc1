"""A language model is the same however it is stored, cut, scanned, placed, packed or decoded, and comes back out as it went in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_cases as language
import numpy as np
import parity_cases as cases
import pytest
from safetensors.numpy import load_file, save_file

from jaxtune.core.errors import ConfigError, ModelError
from jaxtune.layers.stack import StackOptions, names
from jaxtune.models.blueprint import Flat
from jaxtune.models.export import export
from jaxtune.parallel.mesh import Mesh
from jaxtune.tasks.causal_lm import CausalLM

FUSED = ["phi3", "gpt2", "gpt_neox"]


def same_folder(folder: Path, name: str) -> None:
    found, expected = load_file(folder / "model.safetensors"), cases.stored(name)
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert found[tensor].dtype == value.dtype and found[tensor].shape == value.shape and found[tensor].tobytes() == value.tobytes(), (
            tensor
        )
    assert json.loads((folder / "config.json").read_text()) == json.loads((cases.REFERENCES / name / "config.json").read_text())


@pytest.mark.parametrize("trained", [None, frozenset[str]()], ids=["written", "copied"])
@pytest.mark.parametrize("name", language.NAMES)
def test_untrained_models_come_back_bit_equal(tmp_path: Path, name: str, trained: frozenset[str] | None) -> None:
    it = language.loaded(name)
    assert not it.plan.fresh and not it.plan.ignored
    same_folder(export(tmp_path / "out", it.base, it.values, trained=trained, language=True), name)


@pytest.mark.parametrize("name", FUSED)
def test_a_part_of_a_fused_tensor_is_trained(tmp_path: Path, name: str) -> None:
    """The other parts are the base's own numbers, whatever precision they were computed in."""
    it = language.loaded(name)
    rounded: Flat = {key: value.astype(jnp.bfloat16) for key, value in it.values.items()}
    folder = export(tmp_path / "out", it.base, rounded, trained=frozenset({"layers.1.attn.k.kernel"}), language=True)
    found, again = load_file(folder / "model.safetensors"), cases.load_folder(folder, "language")
    assert sum(found[tensor].tobytes() != value.tobytes() for tensor, value in cases.stored(name).items()) == 1
    for key, value in it.values.items():
        for row, each in enumerate(names(key)):
            if each == "layers.1.attn.k.kernel":
                np.testing.assert_array_equal(again.values[key][row], rounded[key][row].astype(jnp.float32))
            elif ".attn." in each:
                np.testing.assert_array_equal(again.values[key][row], value[row], err_msg=each)


def test_an_untied_head_that_a_tied_model_carries_is_left_over(tmp_path: Path) -> None:
    """transformers ties and never looks at it; so its export has none."""
    folder = export(tmp_path / "base", language.loaded("qwen2").base, language.loaded("qwen2").values, language=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / "model.safetensors")
    it = cases.load_folder(folder, "language")
    assert it.plan.ignored == ("lm_head.weight",) and not any(key.startswith("head.") for key in it.values)
    same_folder(export(tmp_path / "out", it.base, it.values, language=True), "qwen2")


def test_a_head_of_its_own_must_be_there(tmp_path: Path) -> None:
    folder = export(tmp_path / "base", language.loaded("llama").base, language.loaded("llama").values, language=True)
    save_file({k: v for k, v in load_file(folder / "model.safetensors").items() if "lm_head" not in k}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"parameter head.embedding has no tensor lm_head.weight in the checkpoint"):
        cases.load_folder(folder, "language")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_classifier_on_the_last_real_token(tmp_path: Path, name: str) -> None:
    it = cases.load_folder(cases.REFERENCES / name, 3)
    assert set(it.plan.fresh) == {"head.out.kernel"}
    right, left = language.batch_of(name, ""), language.batch_of(name, "")
    for key in left:  # the same texts, padded on the other side
        left[key] = np.stack([np.roll(row, len(row) - int(mask.sum())) for row, mask in zip(right[key], right["segment_ids"], strict=True)])
    np.testing.assert_allclose(cases.logits_of(it, right), cases.logits_of(it, left), atol=1e-5)
    folder = export(tmp_path / "out", it.base, it.values, labels=("a", "b", "c"))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [f"{it.base.family.class_name}ForSequenceClassification"]  # type: ignore[attr-defined]
    assert load_file(folder / "model.safetensors")["score.weight"].shape == (3, 32)
    np.testing.assert_array_equal(cases.logits_of(cases.load_folder(folder, 3), right), cases.logits_of(it, right))


WAYS = [
    StackOptions(scan=True),
    StackOptions(scan=False),
    StackOptions(cuts=(1,)),
    StackOptions(cuts=(1,), scan=True, remat="block"),
    StackOptions(scan=True, remat="dots"),
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("name", ["gemma3", "smollm3_window", "qwen3_moe"])
def test_every_way_of_running_the_stack_is_the_same(name: str, options: StackOptions) -> None:
    it = language.load(name, options)
    loss, gradients = language.loss_and_gradients(it, name)
    expected_loss, expected = language.run(name)
    assert abs(loss - expected_loss) < 1e-5
    expected = cases.by_tensor(language.loaded(name), expected)
    for tensor, value in cases.by_tensor(it, gradients).items():
        np.testing.assert_allclose(value, expected[tensor], atol=2e-5 * max(1.0, np.abs(expected[tensor]).max()), err_msg=tensor)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "qwen3_moe"])
def test_eight_devices_equal_one(name: str) -> None:
    placement = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    it = language.load(name, placement=placement)
    batch = {key: np.concatenate([value, value[:1]]) for key, value in language.batch_of(name).items()}
    logits, expected = language.logits_of(it, batch), cases.reference(name)
    real = expected["attention_mask"] > 0
    assert np.abs(logits[:3] - expected["logits"])[real].max() <= 1e-5 * max(1.0, np.abs(expected["logits"]).max())
    for key, value in it.values.items():
        np.testing.assert_array_equal(value, language.loaded(name).values[key], err_msg=key)
        if key.endswith((".q.kernel", ".up.kernel", ".o.kernel")):
            assert value.addressable_shards[0].data.size < value.size, f"{key} is whole on every device"


@pytest.mark.parametrize("name", language.FAMILIES)
def test_decoding_by_the_cache_equals_the_whole_forward_pass(name: str) -> None:
    """In pieces of 7, 1 and the rest, of texts padded on the left. (Scalings by length differ on purpose: see the next test.)"""
    it, batch = language.loaded(name), language.batch_of(name, "prompt.")
    whole = language.logits_of(it, batch)

    @jax.jit
    def pieces(values: Flat) -> jax.Array:
        model: Any = it.blueprint.build(values)
        tokens, segment_ids = jnp.asarray(batch["tokens"]), jnp.asarray(batch["segment_ids"])
        positions = jnp.maximum(jnp.cumsum(segment_ids, 1) - 1, 0)
        cache, found = model.empty_cache(len(tokens), tokens.shape[1], jnp.float32), []
        for first, last in ((0, 7), (7, 8), (8, tokens.shape[1])):
            part = slice(first, last)
            features, cache = model.decode(tokens[:, part], segment_ids, positions[:, part], cache, jnp.int32(first))
            found.append(model.head.logits(model, features.tokens))
        return jnp.concatenate(found, 1)

    np.testing.assert_allclose(np.asarray(pieces(it.values))[batch["segment_ids"] > 0], whole[batch["segment_ids"] > 0], atol=2e-5)


@pytest.mark.parametrize("name", (*language.FAMILIES, "llama_dynamic", "phi3_longrope"))
def test_packed_texts_are_the_same_as_each_by_itself(name: str) -> None:
    """Nothing of a text depends on its neighbours, not even where a scaling follows the length."""
    it, batch = language.loaded(name), language.batch_of(name)
    lengths = batch["segment_ids"].sum(1)
    rows = [batch["tokens"][row, :length] for row, length in enumerate(lengths)]
    packed = {
        "tokens": np.concatenate(rows)[None],
        "segment_ids": np.repeat(np.arange(1, len(rows) + 1, dtype=np.int32), lengths)[None],
    }
    found, expected = language.logits_of(it, packed)[0], language.logits_of(it, batch)
    for row, (length, start) in enumerate(zip(lengths, np.cumsum([0, *lengths[:-1]]), strict=True)):
        np.testing.assert_allclose(found[start : start + length], expected[row, :length], atol=2e-5)


def test_bfloat16_compute_stays_close() -> None:
    expected = cases.reference("llama")
    logits = language.logits_of(language.load("llama", dtype=jnp.bfloat16), language.batch_of("llama"))
    difference = np.abs(logits - expected["logits"])[expected["attention_mask"] > 0].max()
    assert logits.dtype == np.float32 and 1e-6 < difference < 0.1 * np.abs(expected["logits"]).max()


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_moe_plain"])
def test_the_experts_imbalance_is_known(name: str) -> None:
    it = language.loaded(name)
    batch = language.batch_of(name)

    def imbalance(batch: dict[str, Any]) -> float:
        return float(jax.jit(lambda values, batch: it.blueprint.build(values)(batch).imbalance)(it.values, batch))  # type: ignore[operator]

    wider = {key: np.pad(value, ((0, 0), (0, 5))) for key, value in batch.items()}
    assert imbalance(batch) == pytest.approx(imbalance(wider), rel=1e-5), "padding counts nowhere"
    assert imbalance(batch) > it.base.family.raw["num_experts_per_tok"] - 1e-3, "which is the value where all experts are used alike"


def test_balance_adds_the_imbalance_of_the_experts() -> None:
    it, batch = language.loaded("qwen3_moe"), language.batch_of("qwen3_moe")
    batch |= {"token_weight": batch["segment_ids"].astype(np.float32), "loss_weight": np.ones(len(batch["tokens"]), np.float32)}

    def mean(task: CausalLM) -> float:
        found = jax.jit(lambda values, batch: task.objective(it.blueprint.build(values), batch, None))(it.values, batch)
        return float(found.total / found.weight)

    imbalance = float(jax.jit(lambda values, batch: it.blueprint.build(values)(batch).imbalance)(it.values, batch))  # type: ignore[operator]
    assert mean(CausalLM(text="t", balance=0.1)) - mean(CausalLM(text="t")) == pytest.approx(0.1 * imbalance, rel=1e-4)
    assert imbalance > 1
    dense = language.loaded("llama")
    with pytest.raises(ConfigError, match=r"task\.balance: has no effect on a model without a mixture"):
        jax.eval_shape(
            lambda values, batch: CausalLM(text="t", balance=0.1).objective(dense.blueprint.build(values), batch, None), dense.values, batch
        )
