"""A tree of arrays as one flat dictionary of names, and the comparison of a saved tree with the wanted one.

Checkpoints are stored flat: any container (dict, optax state, dataclass) saves alike, any part can be read alone, and a
mismatch is named by one readable path ("params/layers.0-5.attn.q.kernel") before a byte is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import ModelError

_SHOWN = 20


def named_leaves(tree: Any) -> dict[str, Any]:
    """Name -> leaf, in tree order; the parts of a path are joined by "/".

    Raises:
        ValueError: two leaves would get the same name.
    """
    names: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(str(_part(key)) for key in path)
        if name in names:
            raise ValueError(f'two arrays are called "{name}": rename one of them')
        names[name] = leaf
    return names


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """`tree` with each leaf replaced by the one of its name."""
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named_leaves(tree)])


def describe(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as JSON; a typed PRNG key keeps its kind ("key<fry>")."""
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def count_bytes(leaf: Any) -> int:
    """Bytes of the whole array, over all hosts."""
    return int(np.prod(leaf.shape)) * leaf.dtype.itemsize


def check(saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any], where: str, complete: bool) -> None:
    """Compares names, shapes and dtypes. With `complete`, saved arrays that nobody wants are a mismatch as well.

    Raises:
        ModelError: all mismatches at once.
        ValueError: wanted arrays without a sharding, which would be put wherever they lay when they were saved.
    """
    homeless = [name for name, leaf in wanted.items() if getattr(leaf, "sharding", None) is None]
    if homeless:
        raise ValueError(f"these abstract arrays have no sharding: {', '.join(homeless)}")
    problems = []
    for name, leaf in wanted.items():
        if name not in saved:
            problems.append(f"{name}: not in the checkpoint{nearest(name, list(saved))}")
            continue
        found, expected = saved[name], describe(leaf)
        if found["shape"] != expected["shape"]:
            problems.append(f"{name}: shape {tuple(found['shape'])} in the checkpoint, {tuple(expected['shape'])} expected")
        if found["dtype"] != expected["dtype"]:
            problems.append(f"{name}: {found['dtype']} in the checkpoint, {expected['dtype']} expected")
    if complete:
        problems += [f"{name}: in the checkpoint, but this experiment has no such array" for name in saved if name not in wanted]
    if problems:
        shown, more = problems[:_SHOWN], len(problems) - _SHOWN
        raise ModelError(
            [
                f"{where} does not fit the experiment ({len(problems)} mismatches):",
                *(f"  {line}" for line in shown),
                *([f"  ... and {more} more"] if more > 0 else []),
                "resume with the experiment the run was started with, or start a new run",
            ]
        )


def _part(key: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key
