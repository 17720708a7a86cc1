"""Which parameters train, and with what rate and decay: decided by path, before anything is differentiated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.core.paths import matches, select
from jaxtune.layers import stack
from jaxtune.layers.quantized import kernel_shape
from jaxtune.training.optimizers.base import NO_DECAY, Groups, Optimizer


@dataclass(frozen=True)
class Row:
    """One line of the table that is printed before training."""

    pattern: str
    arrays: int
    parameters: int
    share: float
    trains: bool


@dataclass(frozen=True)
class Selection:
    """What one phase trains, by per-layer names, and where stacks must be cut for it."""

    names: frozenset[str]
    cuts: tuple[int, ...]
    table: tuple[Row, ...]

    def trains(self, key: str) -> bool:
        """Whether the array at this stored path trains; its layers always agree, because stacks are cut where they would not."""
        found = {name in self.names for name in stack.names(key)}
        assert len(found) == 1, f"{key} holds layers that train and layers that do not"
        return found.pop()


def choose(params: Mapping[str, jax.ShapeDtypeStruct], patterns: Sequence[str], what: str = "phases.train") -> Selection:
    """Reads the patterns of a phase against the model's parameters; `what` is the setting that holds them, for messages.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    sizes = {name: weights_in(key, shape) // len(stack.names(key)) for key, shape in params.items() for name in stack.names(key)}
    chosen = frozenset(select(tuple(sizes), patterns, f"{what}: pattern"))
    if not chosen:
        raise ConfigError(f"{what}: {', '.join(patterns)} leaves no parameter to train; expected at least one")
    total = sum(sizes.values())
    rows: list[Row] = []
    told: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("!"):
            continue
        mine = {name for name in chosen if name not in told and matches(name, (pattern,))}
        told |= mine
        count = sum(sizes[name] for name in mine)
        rows.append(Row(pattern, len(mine), count, count / total, True))
    frozen = set(sizes) - chosen
    if frozen:
        count = sum(sizes[name] for name in frozen)
        rows.append(Row("(frozen)", len(frozen), count, count / total, False))
    return Selection(chosen, stack.cuts_for(params, chosen.__contains__), tuple(rows))


def weights_in(key: str, array: jax.ShapeDtypeStruct) -> int:
    """How many weights a stored array stands for: a quantized kernel as many as the float one, by its codes."""
    if key.endswith(".kernel.scales"):
        return 0
    return math.prod(kernel_shape(array)) if key.endswith(".kernel.codes") else array.size


def groups(trainable: Sequence[str], optimizer: Optimizer) -> Groups:
    """Which trainable arrays decay and which are stacked.

    Raises:
        ConfigError: a pattern of no_decay matches nothing; only the usual ones may, where no bias or norm trains.
    """
    if own := [pattern for pattern in optimizer.no_decay if pattern not in NO_DECAY]:
        select([stack.names(key)[0] for key in trainable], own, "optimizer.no_decay: pattern")
    decayed = frozenset(key for key in trainable if not matches(stack.names(key)[0], optimizer.no_decay))
    return Groups(decayed, frozenset(key for key in trainable if stack.is_stacked(key)))


def rate_scales(trainable: Sequence[str], optimizer: Optimizer, layer_of: Callable[[str], int], layers: int) -> dict[str, np.ndarray]:
    """Factor of the rate per array, a vector [L] for a stacked one: layer_decay ** distance from the top, times head_rate for the head."""

    def scale(name: str) -> float:
        factor = 1.0 if optimizer.layer_decay is None else optimizer.layer_decay ** (layers + 1 - layer_of(name))
        return factor * (optimizer.head_rate if name.startswith("head.") else 1.0)

    out = {}
    for key in trainable:
        values = np.array([scale(name) for name in stack.names(key)], np.float32)
        out[key] = values if stack.is_stacked(key) else values[0]
    return out
