"""Equal blocks as one stacked array and one scan per segment.

A stack stores layers a..b under the attribute "a-b", so a stored parameter path such as "layers.0-3.attn.q.kernel" tells by itself
which layers its rows are. A segment is a run of layers that train alike: a frozen prefix is a scan of its own without backward
(measured: two scans 11.4 ms and 6.8 MiB, one scan over joined rows 32.0 ms and 26.3 MiB).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtune.layers.dropout import Dropout

_SEGMENT = re.compile(r"(\d+)-(\d+)\Z")

REMAT_POLICIES: Mapping[str, Callable[..., Any] | None] = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class StackOptions:
    """How a stack is cut and run; a family passes it through untouched."""

    cuts: tuple[int, ...] = ()  # layer numbers at which a new segment starts
    scan: bool | Literal["auto"] = "auto"
    remat: Literal["none", "dots", "block"] = "none"

    def unroll(self, layers: int) -> bool:
        """Whether a segment's loop is unrolled.

        auto: shallow CPU runs unroll (144 against 191 ms a step at 4 layers), deep ones and accelerators scan (0.9 against
        11 s of compilation at 32 layers).
        """
        if self.scan == "auto":
            return jax.default_backend() == "cpu" and layers <= 12
        return not self.scan


class Stack(nnx.Module):
    """`layers` equal blocks made by `make(rngs)`; a block is called as `block(x, *args, noise=...)` and returns the next x."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], layers: int, *, options: StackOptions, rngs: nnx.Rngs):
        assert all(0 < c < layers for c in options.cuts), f"cuts {options.cuts} outside 1..{layers - 1}"
        self.layers = layers
        self.options = options
        build = nnx.vmap(lambda key: make(nnx.Rngs(params=key)), in_axes=0, out_axes=0)
        keys = jax.random.split(rngs.params(), layers)
        for first, last in self.bounds:
            setattr(self, f"{first}-{last}", build(keys[first : last + 1]))

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(first, last) layer of every segment, both inclusive."""
        edges = (0, *self.options.cuts, self.layers)
        return tuple((a, b - 1) for a, b in itertools.pairwise(edges))

    def __call__(self, x: jax.Array, *args: Any, noise: Dropout | None = None) -> jax.Array:
        for first, last in self.bounds:
            segment = getattr(self, f"{first}-{last}")
            graph, params, variables = nnx.split(segment, nnx.Param, ...)

            def body(x: jax.Array, row: tuple[Any, Any, jax.Array], graph: Any = graph) -> tuple[jax.Array, Any]:
                params, variables, layer = row
                block = nnx.merge(graph, params, variables, copy=True)
                x = block(x, *args, noise=None if noise is None else noise.fold(layer))
                return x, nnx.state(block, nnx.Not(nnx.Param))

            policy = REMAT_POLICIES[self.options.remat]
            if policy is not None:
                body = jax.checkpoint(body, policy=policy, prevent_cse=False)
            count = last - first + 1
            rows = (params, variables, jnp.arange(first, last + 1))
            x, variables = jax.lax.scan(body, x, rows, unroll=count if self.options.unroll(self.layers) else 1)
            nnx.update(segment, variables)
        return x


def names(key: str) -> tuple[str, ...]:
    """The per-layer names of a stored path, in row order: "layers.0-1.q.kernel" -> ("layers.0.q.kernel", "layers.1.q.kernel").

    A path that is not stacked is its own single name.
    """
    parts = key.split(".")
    for at, part in enumerate(parts):
        if found := _SEGMENT.match(part):
            first, last = int(found[1]), int(found[2])
            return tuple(".".join((*parts[:at], str(i), *parts[at + 1 :])) for i in range(first, last + 1))
    return (key,)


def is_stacked(key: str) -> bool:
    """Whether the array at this stored path has a leading layer axis."""
    return any(_SEGMENT.match(part) for part in key.split("."))


def whole(key: str) -> str:
    """The stored path with its segment left out: the same for all segments of one parameter."""
    return ".".join("#" if _SEGMENT.match(part) else part for part in key.split("."))


def cuts_for(keys: Iterable[str], trained: Callable[[str], bool]) -> tuple[int, ...]:
    """The layer numbers where the set of trained parameters changes, for `keys` of any cutting."""
    layers: dict[int, set[str]] = {}
    for key in keys:
        parts = key.split(".")
        at = next((n for n, part in enumerate(parts) if _SEGMENT.match(part)), None)
        if at is None:
            continue
        for name in names(key):
            number = int(name.split(".")[at])
            layers.setdefault(number, set())
            if trained(name):
                layers[number].add(whole(key))
    return tuple(i for i in sorted(layers)[1:] if layers[i] != layers[i - 1])


def recut[T](
    flat: Mapping[str, T], keys: Sequence[str], slice_rows: Callable[[T, int, int], T], join: Callable[[list[T]], T]
) -> dict[str, T]:
    """The same parameters under another cutting: `keys` names the wanted stored paths.

    Rows of a wanted segment come from whichever given segments hold them; other entries are passed through. Entries that `flat` lacks
    (partly or wholly) are left out.
    """
    pieces: dict[str, list[tuple[int, int, T]]] = {}
    for key, value in flat.items():
        bounds = segment_bounds(key)
        if bounds:
            pieces.setdefault(whole(key), []).append((*bounds, value))
    out: dict[str, T] = {}
    for key in keys:
        bounds = segment_bounds(key)
        if bounds is None:
            if key in flat:
                out[key] = flat[key]
            continue
        first, last = bounds
        parts: list[T] = []
        covered = first
        for a, b, value in sorted(pieces.get(whole(key), []), key=lambda piece: piece[0]):
            low, high = max(a, covered), min(b, last)
            if low != covered or high < low:
                continue
            parts.append(value if (low, high) == (a, b) else slice_rows(value, low - a, high + 1 - a))
            covered = high + 1
        if covered == last + 1:
            out[key] = parts[0] if len(parts) == 1 else join(parts)
    return out


def segment_bounds(key: str) -> tuple[int, int] | None:
    """(first, last) layer of a stored path, or None where it is not stacked."""
    for part in key.split("."):
        if found := _SEGMENT.match(part):
            return int(found[1]), int(found[2])
    return None
