"""One table per model family: our parameter path <-> Hugging Face tensor name <-> layout <-> logical axes.

The same row loads, exports (the pattern reversed) and names the axes that decide sharding, so the three cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import einops
import numpy as np

from jaxtune.layers import stack


@dataclass(frozen=True)
class Weight:
    """A row. `layout` is an einops pattern, Hugging Face side left, ours right; the right side's names are the logical axes.

    `path` and `hf` share placeholders for whole numbers (`{i}` a layer, `{s}` a stage). A fused Hugging Face tensor has several paths,
    joined along the left side's axis called `stack`, or, where they are not equally long, in `parts` along its first axis. The other way
    round, an array of ours may be `many` tensors, numbered by `{n}` and stacked on an axis "experts" that comes first.
    """

    path: str | tuple[str, ...]
    hf: str
    layout: str
    parts: tuple[int, ...] = ()
    many: int = 0
    sizes: tuple[tuple[str, int], ...] = ()  # of axes that a composed axis "(heads each)" leaves open

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @cached_property
    def sides(self) -> tuple[str, str]:
        left, arrow, right = self.layout.partition("->")
        return left.strip(), (right if arrow else left).strip()

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Logical axes of one of our arrays; a composed axis goes by its first name."""
        names = re.sub(r"\((\w+)[^)]*\)", r"\1", self.sides[1]).split()
        return (*(("experts",) if self.many else ()), *(axis for axis in names if axis != "stack"))

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(path)) + r"\Z") for path in self.paths)

    def to_ours(self, tensors: Sequence[np.ndarray], shape: Sequence[int], part: int = 0) -> np.ndarray:
        """Our array of path number `part`, of the given shape.

        Raises:
            einops.EinopsError: the tensors do not fit the layout or the shape.
        """
        left, right = self.sides
        if self.many:
            return np.stack([self._rearranged(tensor, left, right, shape[1:]) for tensor in tensors])
        (tensor,) = tensors
        if self.parts:
            if tensor.shape[0] != sum(self.parts):
                raise einops.EinopsError(f"first axis {tensor.shape[0]} is not {' + '.join(map(str, self.parts))}")
            start = sum(self.parts[:part])
            tensor = tensor[start : start + self.parts[part]]
        ours = self._rearranged(tensor, left, right, shape)
        return ours[part] if right.startswith("stack ") else ours

    def _rearranged(self, tensor: np.ndarray, left: str, right: str, shape: Sequence[int]) -> np.ndarray:
        """The tensor in our layout, its axes as long as `shape` says."""
        composed = {name for group in re.findall(r"\(([^)]*)\)", right) for name in group.split()}
        plain = {axis: size for axis, size in zip(self.axes[bool(self.many) :], shape, strict=True) if axis not in composed}
        ours = einops.rearrange(tensor, f"{left} -> {right}", **plain, **dict(self.sizes))
        if ours.shape[right.startswith("stack ") :] != tuple(shape):  # a composed axis fits any length
            raise einops.EinopsError(f"{ours.shape} is not {tuple(shape)}")
        return ours

    def fits(self, tensor: Sequence[int], shape: Sequence[int], part: int = 0) -> bool:
        """Whether Hugging Face tensors of this shape make our array of the given shape."""
        empty = np.broadcast_to(np.int8(0), tuple(tensor))
        try:
            if self.many:
                self._rearranged(empty, *self.sides, shape[1:])
            else:
                self.to_ours([empty], shape, part)
        except einops.EinopsError:
            return False
        return not self.many or shape[0] == self.many

    def to_hf(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tensors of one array for each path."""
        left, right = self.sides

        def back(value: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(einops.rearrange(value, f"{right} -> {left}", **dict(self.sizes)))

        if self.many:
            return [back(value) for value in arrays[0]]
        if self.parts:
            return [np.concatenate([back(value) for value in arrays])]
        return [back(arrays[0] if isinstance(self.path, str) else np.stack(arrays))]


def linear(path: str, hf: str, layout: str = "out inputs -> inputs out") -> tuple[Weight, Weight]:
    """The rows of a dense layer; `layout` of its kernel, whose last axis on our side is the bias's."""
    return Weight(f"{path}.kernel", f"{hf}.weight", layout), Weight(f"{path}.bias", f"{hf}.bias", layout.split()[-1])


def norm(path: str, hf: str, axis: str = "embed") -> tuple[Weight, Weight]:
    """The rows of a normalisation's scale and bias."""
    return Weight(f"{path}.scale", f"{hf}.weight", axis), Weight(f"{path}.bias", f"{hf}.bias", axis)


@dataclass(frozen=True)
class Place:
    """Where one per-layer array lies in a checkpoint: the tensors, the row that translates them, its part of a fused tensor."""

    tensors: tuple[str, ...]
    row: Weight
    part: int

    @property
    def tensor(self) -> str:
        """The tensor, or the first of many."""
        return self.tensors[0]


# Logical axes of what adapters and quantization put beside or in the place of a kernel, whose own are inputs and outputs.
BESIDE_KERNEL: Mapping[str, Callable[[str, str], tuple[str, ...]]] = {
    "lora_a": lambda inputs, outputs: (inputs, "rank"),
    "lora_b": lambda inputs, outputs: ("rank", outputs),
    "magnitude": lambda inputs, outputs: (outputs,),
    "scale_in": lambda inputs, outputs: (inputs,),
    "scale_out": lambda inputs, outputs: (outputs,),
    "kernel.codes": lambda inputs, outputs: (inputs, outputs),
    "kernel.scales": lambda inputs, outputs: ("block", outputs),
}


def kernel_beside(name: str) -> tuple[str, str] | None:
    """(kernel's name, part) where the name is that of an adapter's parameter or a part of a quantized kernel."""
    part = next((part for part in BESIDE_KERNEL if name.endswith("." + part)), None)
    return None if part is None else (name.removesuffix(part) + "kernel", part)


class Table:
    """The rows of one model. Every parameter must be covered by exactly one row; what stands beside a kernel goes by the kernel's."""

    def __init__(self, rows: Iterable[Weight]):
        self.rows = tuple(rows)

    def place(self, name: str) -> Place:
        """Where the parameter with this per-layer name comes from; for what stands beside a kernel, the kernel."""
        if beside := kernel_beside(name):
            name = beside[0]
        found = []
        for row in self.rows:
            for part, pattern in enumerate(row.patterns):
                if match := pattern.match(name):
                    found.append(Place(tuple(row.hf.format(**match.groupdict(), n=n) for n in range(row.many or 1)), row, part))
        assert len(found) == 1, f"{name} is covered by {len(found)} rows of the weight table"
        return found[0]

    def axes(self, key: str) -> tuple[str, ...]:
        """Logical axes of a stored array; a stacked one has "layers" first."""
        axes = self.place(stack.names(key)[0]).row.axes
        if beside := kernel_beside(key):
            axes = BESIDE_KERNEL[beside[1]](*axes)
        return ("layers", *axes) if stack.is_stacked(key) else axes

    def export(self, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        """Hugging Face tensors of per-layer arrays, one by one, in the order of the first path."""
        waiting: dict[str, dict[int, np.ndarray]] = {}
        for name, array in arrays.items():
            place = self.place(name)
            parts = waiting.setdefault(place.tensor, {})
            parts[place.part] = array
            if len(parts) == len(place.row.paths):
                yield from zip(place.tensors, place.row.to_hf([parts[i] for i in range(len(parts))]), strict=True)
                del waiting[place.tensor]
        assert not waiting, f"fused tensors with missing parts: {sorted(waiting)}"
