"""One model, run in every way it can be stored and placed: the numbers must not depend on it."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest

from jaxtune.layers import stack
from jaxtune.layers.stack import StackOptions
from jaxtune.models.blueprint import Flat
from jaxtune.parallel.mesh import Mesh

FAMILIES = ["bert", "roberta", "distilbert", "electra", "vit", "deit", "resnet"]


def four_rows(name: str) -> dict[str, np.ndarray]:
    """The recorded batch of three and its first row again, so that it divides by the mesh."""
    return {key: np.concatenate([value, value[:1]]) for key, value in cases.batch_of(name).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_eight_devices_equal_one(name: str) -> None:
    placement = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    it = cases.load_folder(cases.REFERENCES / name, 3, placement=placement)
    logits = cases.logits_of(it, four_rows(name))
    assert np.abs(logits[:3] - cases.reference(name)["logits"]).max() <= 1e-5
    np.testing.assert_allclose(logits[3], logits[0], atol=1e-6)
    for key, value in it.values.items():
        np.testing.assert_array_equal(value, cases.loaded(name).values[key], err_msg=key)
        if key.endswith("kernel") and "head" not in key and ".stem." not in f".{key}":
            parts = {shard.data.shape for shard in value.addressable_shards}
            assert len(parts) == 1 and np.prod(next(iter(parts))) < value.size, f"{key} is whole on every device"


def test_rules_decide_where_a_kernel_is_cut() -> None:
    placement = Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])
    it = cases.load_folder(cases.REFERENCES / "bert", 3, placement=placement)
    shards = {key: it.values[key].addressable_shards[0].data.shape for key in it.values}
    assert shards["layers.0-2.attn.q.kernel"] == (3, 16, 16)  # [layers, embed by fsdp, heads by tensor]
    assert shards["layers.0-2.attn.o.kernel"] == (3, 16, 16)
    assert shards["layers.0-2.up.kernel"] == (3, 16, 20)
    assert shards["layers.0-2.down.kernel"] == (3, 20, 16)
    assert shards["layers.0-2.attn.q.bias"] == (3, 16)
    assert shards["embeddings.token.embedding"] == (60, 16)


def run_with(name: str, options: StackOptions, dtype: jnp.dtype | type = jnp.float32) -> tuple[cases.Loaded, np.ndarray]:
    it = cases.load_folder(cases.REFERENCES / name, 3, options=options, dtype=dtype)
    return it, cases.logits_of(it, cases.batch_of(name))


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_scanned_cut_and_rematerialised_stacks_equal_the_whole_one(name: str) -> None:
    expected = cases.run(name)[0]["logits"]
    ways = [StackOptions(scan=True), StackOptions(scan=False), StackOptions(cuts=(1,)), StackOptions(cuts=(1, 2), scan=True, remat="block")]
    for options in ways:
        _, logits = run_with(name, options)
        np.testing.assert_allclose(logits, expected, atol=1e-6, err_msg=str(options))


def test_gradients_through_cut_and_rematerialised_stacks() -> None:
    _, _, expected, _ = cases.run("bert")
    for options in (StackOptions(cuts=(1,), remat="dots"), StackOptions(scan=True, remat="block")):
        it = cases.load_folder(cases.REFERENCES / "bert", 3, options=options)

        @jax.jit
        def gradients(values: Flat, batch: Mapping[str, jax.Array], it: cases.Loaded = it) -> Flat:
            def loss(values: Flat) -> jax.Array:
                found = cases.forward(it.blueprint.build(values), batch)
                return cases.loss_of("single_label_classification", found, cases.reference("bert"))

            return jax.grad(loss)(values)

        for tensor, value in cases.by_tensor(it, gradients(it.values, cases.batch_of("bert"))).items():
            np.testing.assert_allclose(value, expected[tensor], atol=1e-6, err_msg=f"{tensor} {options}")


def test_recutting_parameters_and_back() -> None:
    whole = cases.loaded("bert").values
    cut, _ = run_with("bert", StackOptions(cuts=(1, 2)))

    def recut(flat: Mapping[str, jax.Array], keys: Mapping[str, object]) -> Flat:
        return stack.recut(flat, list(keys), lambda value, first, last: value[first:last], jnp.concatenate)

    forward = recut(whole, cut.blueprint.variables)
    back = recut(forward, cases.loaded("bert").blueprint.variables)
    assert forward.keys() == cut.values.keys() and back.keys() == whole.keys()
    for key, value in cut.values.items():
        np.testing.assert_array_equal(forward[key], value, err_msg=key)
    for key, value in whole.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


@pytest.mark.parametrize("name", ["bert", "vit", "resnet_basic"])
def test_bfloat16_compute_stays_close(name: str) -> None:
    expected = cases.reference(name)["logits"]
    _, logits = run_with(name, StackOptions(), jnp.bfloat16)
    assert logits.dtype == np.float32
    difference = np.abs(logits - expected).max()
    assert 1e-6 < difference < 0.05 * np.abs(expected).max(), "bfloat16 has 8 bits: not equal, and not far"
