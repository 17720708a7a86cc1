"""The norm of the gradient by part of the model: the embeddings, every layer, the head.

The step needs the sum of all squares anyway; kept apart by part it costs a vector of a few numbers, which is fetched at evaluations only.
A part is what stands before a name's first number, with it: "layers.3.attn.q.kernel" belongs to "layers.3", "head.out.bias" to "head".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.layers import stack


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its per-layer name."""
    words = name.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), 0)
    return ".".join(words[: first + 1])


def parts(keys: Iterable[str]) -> tuple[str, ...]:
    """The parts in the order of the vector that `part_norms` makes of arrays at these stored paths."""
    return tuple(part for group in dict.fromkeys(_group(key) for key in sorted(keys)) for part in group)


def part_norms(gradients: Mapping[str, jax.Array]) -> jax.Array:
    """f32[parts]: the norm of each part; their own norm is that of everything."""
    squares: dict[tuple[str, ...], jax.Array] = {}
    for key in sorted(gradients):
        gradient, group = gradients[key], _group(key)
        layered = len(group) == len(stack.names(key)) and stack.is_stacked(key)
        axes = tuple(range(1, gradient.ndim)) if layered else None
        found = jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=axes).reshape(len(group))
        squares[group] = squares[group] + found if group in squares else found
    return jnp.sqrt(jnp.concatenate(list(squares.values())))


def named(keys: Iterable[str], norms: np.ndarray) -> dict[str, float]:
    """{part: norm} of a fetched vector."""
    found: dict[str, float] = {}
    for part, norm in zip(parts(keys), norms.tolist(), strict=True):
        found[part] = math.hypot(found.get(part, 0.0), norm)
    return found


def _group(key: str) -> tuple[str, ...]:
    """The parts that an array's layers belong to, each once."""
    return tuple(dict.fromkeys(part_of(name) for name in stack.names(key)))
