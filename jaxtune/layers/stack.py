"""Equal blocks as one stacked array and one scan per segment.

A stack stores layers a..b under the attribute "a-b", so a stored parameter path such as "layers.0-3.attn.q.kernel" tells by itself
which layers its rows are. A segment is a run of layers that train alike: a frozen prefix is a scan of its own without backward
(measured: two scans 11.4 ms and 6.8 MiB, one scan over joined rows 32.0 ms and 26.3 MiB). Blocks whose parameters are alike may
still run in different ways (local and global attention, say); a scan then goes over the shortest repeating group of them.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtune.layers.attention import Implementation
from jaxtune.layers.dropout import Dropout, adapters_with, in_adapters

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
    attention: Implementation = "auto"  # for the blocks of a stack that have any

    def unroll(self, layers: int) -> bool:
        """Whether a segment's loop is unrolled.

        auto: shallow CPU runs unroll (144 against 191 ms a step at 4 layers), deep ones and accelerators scan (0.9 against
        11 s of compilation at 32 layers).
        """
        if self.scan == "auto":
            return jax.default_backend() == "cpu" and layers <= 12
        return not self.scan


class Stack(nnx.Module):
    """`layers` equal blocks made by `make(rngs)`; a block is called as `block(x, *args, noise=...)` and returns the next x, any tree of arrays.

    With `kinds`, one per layer, a block is also told how it is meant to run: `kind=` its own (known when the program is compiled) and
    `layer=` its number (an array).
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        layers: int,
        *,
        kinds: Sequence[Hashable] | None = None,
        options: StackOptions,
        rngs: nnx.Rngs,
    ):
        assert all(0 < c < layers for c in options.cuts), f"cuts {options.cuts} outside 1..{layers - 1}"
        assert kinds is None or len(kinds) == layers, f"{layers} layers of {len(kinds or ())} kinds"
        self.layers = layers
        self.kinds = Kinds(None if kinds is None else tuple(kinds))
        self.options = options
        build = nnx.vmap(lambda key: make(nnx.Rngs(params=key)), in_axes=0, out_axes=0)
        keys = jax.random.split(rngs.params(), layers)
        for first, last in self.bounds:
            setattr(self, f"{first}-{last}", build(keys[first : last + 1]))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The segments: from cut to cut, and within that as few different blocks as the kinds allow."""
        edges = (0, *self.options.cuts, self.layers)
        kinds = self.kinds.each or (None,) * self.layers
        return tuple(group for a, b in itertools.pairwise(edges) for group in repeating(kinds[a:b], a))

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """(first, last) layer of every segment, both inclusive."""
        return tuple((group.first, group.last) for group in self.groups)

    def __call__[Tree](self, x: Tree, *args: Any, noise: Dropout | None = None) -> Tree:
        unrolled = self.options.unroll(self.layers)
        for group in self.groups:
            segment = getattr(self, f"{group.first}-{group.last}")
            graph, params, variables = nnx.split(segment, nnx.Param, ...)

            def one(x: Tree, row: Any, step: int, graph: Any = graph, group: Group = group) -> tuple[Tree, Any]:
                params, variables, layer = row
                block = nnx.merge(graph, params, variables, copy=True)
                told = {} if self.kinds.each is None else {"kind": self.kinds.each[group.first + step], "layer": layer}
                in_adapter = in_adapters()
                with adapters_with(None if in_adapter is None else in_adapter.fold(layer)):
                    x = block(x, *args, noise=None if noise is None else noise.fold(layer), **told)
                return x, nnx.state(block, nnx.Not(nnx.Param))

            policy = REMAT_POLICIES[self.options.remat]
            if policy is not None:
                # outside of a loop XLA would join the second computation with the first, and keep everything after all
                one = jax.checkpoint(one, policy=policy, prevent_cse=unrolled or group.repeats == 1, static_argnums=(2,))

            def body(x: Tree, rows: Any, one: Any = one, period: int = group.period) -> tuple[Tree, Any]:
                changed = []
                for step in range(period):
                    x, variables = one(x, jax.tree.map(lambda value, step=step: value[step], rows), step)
                    changed.append(variables)
                return x, jax.tree.map(lambda *values: jnp.stack(values), *changed)

            rows = (params, variables, jnp.arange(group.first, group.last + 1))
            rows = jax.tree.map(lambda value, period=group.period: value.reshape(-1, period, *value.shape[1:]), rows)
            x, variables = jax.lax.scan(body, x, rows, unroll=group.repeats if unrolled else 1)
            nnx.update(segment, jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:]), variables))
        return x


@dataclass(frozen=True)
class Kinds:
    """The kind of each layer, or None where all are alike; hashable, so that it is part of the graph and not of the state."""

    each: tuple[Hashable, ...] | None


@dataclass(frozen=True)
class Group:
    """A segment: `period` blocks from layer `first`, `repeats` times."""

    first: int
    period: int
    repeats: int

    @property
    def last(self) -> int:
        return self.first + self.period * self.repeats - 1


@functools.cache
def repeating(kinds: tuple[Hashable, ...], first: int = 0) -> tuple[Group, ...]:
    """Groups that follow each other and spell `kinds`, with as little to compile as possible: blocks, and one more for each group.

    "llllgllllgll" is "llllg" twice and "l" twice. Found from the end, each start choosing its best group.
    """
    best: list[tuple[int, int, tuple[Group, ...]]] = [(0, 0, ())]  # (cost, groups, the groups) of the last n kinds
    for start in reversed(range(len(kinds))):
        found = []
        for period in range(len(kinds) - start, 0, -1):  # of equals the longer comes first
            end = start + period
            while True:
                cost, count, rest = best[len(kinds) - end]
                found.append((period + 1 + cost, 1 + count, (Group(first + start, period, (end - start) // period), *rest)))
                if kinds[end : end + period] != kinds[start : start + period]:
                    break
                end += period
        best.append(min(found, key=lambda way: way[:2]))
    return best[-1][2]


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
