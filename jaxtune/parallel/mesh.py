"""The mesh as a person writes it: how many devices each axis gets. One device is a mesh of one, so nothing runs unsharded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax.sharding import AxisType
from pydantic import Field

from jaxtune.core.component import Component
from jaxtune.core.errors import ConfigError
from jaxtune.parallel.placement import Placement
from jaxtune.parallel.rules import MESH_AXES


class Mesh(Component):
    """Devices per axis; the product must be the number of devices."""

    data: int | Literal["auto"] = Field(
        default="auto", description="copies of the model that share the batch; auto takes the devices that are left"
    )
    fsdp: int = Field(default=1, ge=1, description="devices over which parameters and optimizer state are split, and the batch as well")
    tensor: int = Field(default=1, ge=1, description="devices over which heads, mlp and vocabulary are split")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) for `devices` devices.

        Raises:
            ConfigError: the axes do not multiply to the number of devices.
        """
        rest = self.fsdp * self.tensor
        data = self.data if self.data != "auto" else devices // rest
        if data < 1 or data * rest != devices:
            divisors = [n for n in range(1, devices + 1) if devices % n == 0]
            raise ConfigError(
                f"mesh: data {self.data} x fsdp {self.fsdp} x tensor {self.tensor} does not fit {devices} device(s); "
                f"the product must be {devices} (each axis one of {', '.join(map(str, divisors))})"
            )
        return data, self.fsdp, self.tensor

    def build(self, devices: Sequence[Any] | None = None) -> Placement:
        """The placement on `devices` (default: all that jax sees)."""
        devices = list(jax.devices() if devices is None else devices)
        shape = self.shape(len(devices))
        assert math.prod(shape) == len(devices)
        # jax.make_mesh makes Explicit axes by default, which plain layers do not annotate for.
        mesh = jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
        return Placement(mesh)
