"""Random changes of training examples: single rows on the host (texts), whole batches on the device (images).

Two kinds, because the work differs: token lists have their own lengths, pixels are arithmetic that an accelerator does in passing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError
from jaxtune.data.processor import Processor

Batch = Mapping[str, jax.Array]


class Augment(Component):
    """One entry of `data.augment`: a `HostAugment` or a `DeviceAugment`."""


class HostAugment(Augment):
    """Changes one row before it is put into a batch."""

    def fit(self, processor: Processor) -> HostAugment:
        """What it needs to know of the checkpoint (special tokens), learned once; raises ConfigError when they do not go together."""
        return self

    def __call__(self, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """The changed row; `row` itself and its arrays stay as they are."""
        raise NotImplementedError


class DeviceAugment(Augment):
    """Changes a batch inside the training step, before the task prepares it: images are [B,Y,X,C], u8 or float, from 0 to 255."""

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        """The changed batch. Traced: what happens to a row follows from the key and the row's place in the batch."""
        raise NotImplementedError

    def image(self, batch: Batch) -> jax.Array:
        """The batch's images.

        Raises:
            ConfigError: it has none.
        """
        if "image" not in batch:
            found = ", ".join(sorted(batch))
            raise ConfigError(f"data.augment: {type(self).__name__} changes images, but this task's batches hold {found}; leave it out")
        return batch["image"]


def host_part(augments: Sequence[Augment], processor: Processor) -> tuple[HostAugment, ...]:
    """What goes to `pipeline.batches`.

    Raises:
        ConfigError: an augment does not go with what the model reads.
    """
    return tuple(augment.fit(processor) for augment in augments if isinstance(augment, HostAugment))


def device_part(augments: Sequence[Augment], classes: int) -> Callable[[Batch, jax.Array], Batch] | None:
    """What goes to `training.step`: all device augments in order as one function, or None when there are none."""
    chosen = [augment for augment in augments if isinstance(augment, DeviceAugment)]
    if not chosen:
        return None

    def change(batch: Batch, key: jax.Array) -> Batch:
        for number, augment in enumerate(chosen):
            batch = augment(batch, jax.random.fold_in(key, number), classes)
        return batch

    return change
