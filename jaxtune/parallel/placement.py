"""Where arrays live: shardings of parameters, batches and activations on one mesh.

A placement is active while a step is traced, so layers can pin activations by logical axis without knowing the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxtune.parallel.rules import partition

_ACTIVE: ContextVar[Placement | None] = ContextVar("placement", default=None)


@dataclass(frozen=True)
class Placement:
    """One mesh and the rules of `parallel/rules.py`."""

    mesh: jax.sharding.Mesh

    @property
    def sizes(self) -> Mapping[str, int]:
        return dict(self.mesh.shape)

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def batch_ways(self) -> int:
        """Into how many parts the rows of a batch are split."""
        return self.sizes["data"] * self.sizes["fsdp"]

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """Sharding of an array whose dimensions mean `axes`."""
        return NamedSharding(self.mesh, partition(axes, shape, self.sizes))

    def rows(self) -> NamedSharding:
        """Sharding of a batch array: rows split, everything else whole."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's rows of a batch, as global device arrays."""
        sharding = self.rows()
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), sharding)
        return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}

    def put(self, tree: Any) -> Any:
        """Small host values, replicated on every device."""
        return jax.device_put(tree, self.replicated)

    @contextmanager
    def active(self) -> Iterator[None]:
        """While active, `constrain` pins activations to this mesh."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def current() -> Placement | None:
    """The active placement, for layers that divide their work over its devices themselves."""
    return _ACTIVE.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Keeps an activation where the rules want it; without an active placement of several devices it is `x` itself."""
    placement = current()
    if placement is None or placement.devices == 1:
        return x
    return jax.lax.with_sharding_constraint(x, placement.sharding(axes, x.shape))
