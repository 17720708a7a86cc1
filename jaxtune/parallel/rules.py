"""Logical axis -> mesh axis, stated once for parameters and activations of every model.

Layers name what an axis means ("heads", "mlp"); this table alone decides where it lives, so a mesh can change without touching a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "out_channels": ("fsdp",),
}


def partition(axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]) -> PartitionSpec:
    """The spec of one array: each logical axis goes to its mesh axes where the dimension divides evenly, else it is replicated.

    A mesh axis serves one dimension only: the first that asks for it.
    """
    assert len(axes) == len(shape), f"{len(axes)} axis names {tuple(axes)} for shape {tuple(shape)}"
    used: set[str] = set()
    entries: list[tuple[str, ...] | str | None] = []
    for axis, size in zip(axes, shape, strict=True):
        wanted: tuple[str, ...] = tuple(m for m in RULES.get(axis or "", ()) if m not in used and sizes[m] > 1)
        ways = 1
        for name in wanted:
            ways *= sizes[name]
        if not wanted or size % ways:
            entries.append(None)
            continue
        used.update(wanted)
        entries.append(wanted)
    return PartitionSpec(*entries)
