"""Where arrays come to lie, and that activations are pinned only while a placement is active."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxtune.parallel.mesh import Mesh
from jaxtune.parallel.placement import Placement, constrain


@pytest.fixture(scope="module")
def placement() -> Placement:
    return Mesh(data=2, fsdp=2, tensor=2).build(jax.devices()[:8])


def test_rows_of_a_batch_are_split_over_data_and_fsdp(placement: Placement) -> None:
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3), "label": np.arange(8, dtype=np.int32)}
    placed = placement.put_batch(batch)
    for name, value in batch.items():
        np.testing.assert_array_equal(placed[name], value)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
        assert placed[name].sharding == placement.rows()
    rows = {shard.device: np.asarray(shard.data).tolist() for shard in placed["label"].addressable_shards}
    assert sorted({tuple(values) for values in rows.values()}) == [(0, 1), (2, 3), (4, 5), (6, 7)], "each row on two devices: tensor"


def test_small_values_are_on_every_device(placement: Placement) -> None:
    placed = placement.put({"rate": np.float32(0.1), "scales": {"a": np.ones(3, np.float32)}})
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8


def test_sharding_follows_the_rules(placement: Placement) -> None:
    assert placement.sharding(("embed", "heads"), (8, 8)).spec == PartitionSpec("fsdp", "tensor")


def test_constrain_pins_while_active(placement: Placement) -> None:
    x = jnp.arange(64.0).reshape(8, 8)

    def pinned(x: jax.Array) -> jax.Array:
        return constrain(x * 2, "batch", "mlp")

    def count() -> int:
        return str(jax.make_jaxpr(lambda x: pinned(x))(x)).count("sharding_constraint")

    assert count() == 0
    with placement.active():
        assert count() == 1
        y = jax.jit(pinned)(x)
        with Mesh().build(jax.devices()[:1]).active():
            assert count() == 0, "one device needs no pin"
        assert count() == 1
    assert count() == 0
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 4)}
    np.testing.assert_array_equal(y, x * 2)


def test_an_error_ends_the_activation(placement: Placement) -> None:
    with pytest.raises(RuntimeError), placement.active():
        raise RuntimeError
    x = jnp.ones((8, 8))
    assert constrain(x, "batch", "mlp") is x
