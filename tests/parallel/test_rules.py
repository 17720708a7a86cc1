"""Logical axes to mesh axes: where it divides, once per mesh axis, else whole."""

from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec

from jaxtune.parallel.rules import MESH_AXES, RULES, partition

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("axes", "shape", "spec"),
    [
        (("embed", "heads"), (8, 8), PartitionSpec("fsdp", "tensor")),
        (("heads", "embed"), (8, 8), PartitionSpec("tensor", "fsdp")),
        (("layers", "embed", "mlp"), (3, 8, 12), PartitionSpec(None, "fsdp", "tensor")),
        (("batch", "token", "mlp"), (8, 5, 6), PartitionSpec(("data", "fsdp"), None, "tensor")),
        (("vocab", "embed"), (7, 8), PartitionSpec(None, "fsdp")),  # 7 rows do not divide by 2
        (("batch",), (6,), PartitionSpec()),  # 6 rows do not divide by 4
        (("embed", "embed"), (8, 8), PartitionSpec("fsdp")),  # a mesh axis serves one dimension
        (("heads", "mlp"), (8, 8), PartitionSpec("tensor")),
        ((None, "unheard of"), (8, 8), PartitionSpec()),
        ((), (), PartitionSpec()),
    ],
)
def test_partition(axes: tuple[str | None, ...], shape: tuple[int, ...], spec: PartitionSpec) -> None:
    found = tuple(partition(axes, shape, SIZES))
    length = max(len(found), len(spec))
    assert found + (None,) * (length - len(found)) == tuple(spec) + (None,) * (length - len(spec))


def test_axes_of_one_device_are_left_out() -> None:
    assert partition(("batch", "embed"), (8, 8), {"data": 1, "fsdp": 8, "tensor": 1}) == PartitionSpec("fsdp", None)
    assert partition(("embed", "heads"), (8, 8), {"data": 8, "fsdp": 1, "tensor": 1}) == PartitionSpec(None, None)


def test_rules_name_axes_of_the_mesh() -> None:
    assert {axis for axes in RULES.values() for axis in axes} == set(MESH_AXES)


def test_names_and_dimensions_must_agree() -> None:
    with pytest.raises(AssertionError, match="1 axis names"):
        partition(("embed",), (8, 8), SIZES)
