"""A merged model computes what the adapted one did, and comes from the base's own float weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import adapter_cases as adapters
import numpy as np
import parity_cases as cases
import pytest
from adapter_cases import adapted, logits, shaken, wide_bert
from safetensors.numpy import load_file

from jaxtune.core.errors import ModelError
from jaxtune.layers import stack
from jaxtune.layers.linear import Form
from jaxtune.models import merge as merging
from jaxtune.models.adapters import Dora, Ia3, Lora, Override
from jaxtune.models.export import export
from jaxtune.models.merge import Merged, merge
from jaxtune.models.weights import kernel_beside

KINDS: dict[str, Any] = {
    "lora": Lora(rank=4),
    "some": Lora(targets=("layers.{0,2}.*.{q,v}", "layers.1.down"), rank=4, rslora=True, overrides={"*.down": Override(rank=2)}),
    "dora": Dora(rank=4),
    "ia3": Ia3(),
}


def merged(it: adapters.Adapted, trained: frozenset[str] = frozenset()) -> Merged:
    return merge(it.it.base, it.it.table, it.it.plan, it.forms, it.it.values, trained)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_merged_model_computes_the_same(kind: str, tmp_path: Path) -> None:
    batch = cases.batch_of("bert")
    it = shaken(adapted(cases.REFERENCES / "bert", KINDS[kind]))
    found = merged(it)
    assert 0 < found.difference < 2e-6
    export(tmp_path / "out", it.it.base, found.values, trained=found.changed)
    again = cases.load_folder(tmp_path / "out", 3)
    assert np.abs(logits(again, batch) - logits(it.it, batch)).max() <= 1e-5
    assert np.abs(logits(cases.loaded("bert"), batch) - logits(it.it, batch)).max() > 0.01
    before, after = cases.stored("bert"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {f"bert.{it.it.table.place(name).tensor}" for name in found.changed}


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("adapter", [None, Lora(targets=("layers.*.{q,v}",), rank=4)], ids=["none", "lora"])
def test_a_quantized_base_is_exported_from_its_float_files(form: Any, adapter: Any, tmp_path: Path) -> None:
    folder = wide_bert(tmp_path / "base")
    it = adapted(folder, adapter, quantize=form)
    it = shaken(it) if adapter is not None else it
    found = merged(it)
    export(tmp_path / "out", it.it.base, found.values, trained=found.changed)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if adapter is not None and name.endswith(("query.weight", "value.weight")):
            ours, layer = name.split(".")[-2][0], int(name.split(".")[3])
            parts = [np.asarray(it.it.values[f"layers.0-2.attn.{ours}.{part}"])[layer] for part in ("lora_a", "lora_b")]
            np.testing.assert_allclose(after[name], value + 8.0 * (parts[0] @ parts[1]).T, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_a_kernel_that_was_trained_is_merged_as_it_is_now() -> None:
    it = shaken(adapted(cases.REFERENCES / "bert", KINDS["lora"]))
    key = "layers.0-2.attn.q.kernel"
    values = {**it.it.values, key: it.it.values[key] * 2}
    moved = adapters.Adapted(replace(it.it, values=values), it.attachment, it.module)
    names = frozenset(stack.names(key))
    difference = merged(moved, names).values[key] - merged(moved).values[key]
    np.testing.assert_allclose(difference, it.it.values[key], atol=1e-6)


def test_nothing_of_the_adapter_is_left() -> None:
    found = merged(shaken(adapted(cases.REFERENCES / "bert", KINDS["dora"])))
    assert not [key for key in found.values if kernel_beside(key)]


def test_a_merge_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(kernel: np.ndarray, bias: Any, parts: Any, form: Form) -> Any:
        return kernel + parts["lora_a"] @ parts["lora_b"], bias  # the scale is forgotten

    monkeypatch.setattr(merging, "merged", wrong)
    with pytest.raises(ModelError, match=r"layers.0.attn.\w: merged, its outputs differ by"):
        merged(shaken(adapted(cases.REFERENCES / "bert", KINDS["lora"])))
