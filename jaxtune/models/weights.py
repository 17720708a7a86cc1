"""One table per model family: our parameter path <-> Hugging Face tensor name <-> layout <-> logical axes.

The same row loads, exports (the pattern reversed) and names the axes that decide sharding, so the three cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import einops
import numpy as np

from jaxtune.layers import stack


@dataclass(frozen=True)
class Weight:
    """A row. `layout` is an einops pattern, Hugging Face side left, ours right; the right side's names are the logical axes.

    `path` and `hf` share placeholders for whole numbers (`{i}` a layer, `{s}` a stage). A fused Hugging Face tensor has several
    paths, joined along the left side's axis called `stack`.
    """

    path: str | tuple[str, ...]
    hf: str
    layout: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @cached_property
    def sides(self) -> tuple[str, str]:
        left, arrow, right = self.layout.partition("->")
        return left.strip(), (right if arrow else left).strip()

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of one of our arrays."""
        return tuple(axis for axis in self.sides[1].split() if axis != "stack")

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(path)) + r"\Z") for path in self.paths)

    def to_ours(self, tensor: np.ndarray, shape: Sequence[int]) -> list[np.ndarray]:
        """Our arrays (one per path) of the given per-array shape.

        Raises:
            einops.EinopsError: the tensor does not fit the layout or the shape.
        """
        left, right = self.sides
        sizes = dict(zip(self.axes, shape, strict=True))
        ours = einops.rearrange(tensor, f"{left} -> {right}", **sizes)
        return [ours] if isinstance(self.path, str) else list(ours)

    def fits(self, tensor: Sequence[int], shape: Sequence[int]) -> bool:
        """Whether a Hugging Face tensor of this shape makes our arrays of the given per-array shape."""
        try:
            self.to_ours(np.broadcast_to(np.int8(0), tuple(tensor)), shape)
        except einops.EinopsError:
            return False
        return True

    def to_hf(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        left, right = self.sides
        value = arrays[0] if isinstance(self.path, str) else np.stack(arrays)
        return np.ascontiguousarray(einops.rearrange(value, f"{right} -> {left}"))


def linear(path: str, hf: str, layout: str = "out inputs -> inputs out") -> tuple[Weight, Weight]:
    """The rows of a dense layer; `layout` of its kernel, whose last axis on our side is the bias's."""
    return Weight(f"{path}.kernel", f"{hf}.weight", layout), Weight(f"{path}.bias", f"{hf}.bias", layout.split()[-1])


def norm(path: str, hf: str, axis: str = "embed") -> tuple[Weight, Weight]:
    """The rows of a normalisation's scale and bias."""
    return Weight(f"{path}.scale", f"{hf}.weight", axis), Weight(f"{path}.bias", f"{hf}.bias", axis)


@dataclass(frozen=True)
class Place:
    """Where one per-layer array lies in a checkpoint: the tensor, the row that translates it, its part of a fused tensor."""

    tensor: str
    row: Weight
    part: int


class Table:
    """The rows of one model. Every parameter must be covered by exactly one row."""

    def __init__(self, rows: Iterable[Weight]):
        self.rows = tuple(rows)

    def place(self, name: str) -> Place:
        """Where the parameter with this per-layer name comes from."""
        found = []
        for row in self.rows:
            for part, pattern in enumerate(row.patterns):
                if match := pattern.match(name):
                    found.append(Place(row.hf.format(**match.groupdict()), row, part))
        assert len(found) == 1, f"{name} is covered by {len(found)} rows of the weight table"
        return found[0]

    def axes(self, key: str) -> tuple[str, ...]:
        """Logical axes of a stored array; a stacked one has "layers" first."""
        axes = self.place(stack.names(key)[0]).row.axes
        return ("layers", *axes) if stack.is_stacked(key) else axes

    def export(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Hugging Face tensors of per-layer arrays, one by one, in the order of the first path."""
        waiting: dict[str, dict[int, np.ndarray]] = {}
        for name, array in arrays.items():
            place = self.place(name)
            parts = waiting.setdefault(place.tensor, {})
            parts[place.part] = array
            if len(parts) == len(place.row.paths):
                yield place.tensor, place.row.to_hf([parts[i] for i in range(len(parts))])
                del waiting[place.tensor]
        assert not waiting, f"fused tensors with missing parts: {sorted(waiting)}"
