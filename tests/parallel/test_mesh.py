"""What a person writes under `mesh:` and the mesh that comes of it."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType
from pydantic import ValidationError

from jaxtune.core.errors import ConfigError
from jaxtune.parallel.mesh import Mesh


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        (Mesh(), 1, (1, 1, 1)),
        (Mesh(), 8, (8, 1, 1)),
        (Mesh(fsdp=8), 8, (1, 8, 1)),
        (Mesh(tensor=4), 8, (2, 1, 4)),
        (Mesh(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
    ],
)
def test_shapes(mesh: Mesh, devices: int, shape: tuple[int, int, int]) -> None:
    assert mesh.shape(devices) == shape
    placement = mesh.build(jax.devices()[:devices])
    assert tuple(placement.mesh.shape.values()) == shape and placement.devices == devices
    assert placement.batch_ways == shape[0] * shape[1]
    assert set(placement.mesh.axis_types) == {AxisType.Auto}
    assert len(set(placement.mesh.devices.flat)) == devices


@pytest.mark.parametrize("mesh", [Mesh(data=3), Mesh(fsdp=3), Mesh(tensor=16), Mesh(data=2, fsdp=2), Mesh(data=8, tensor=2)])
def test_a_mesh_that_does_not_fit(mesh: Mesh) -> None:
    with pytest.raises(ConfigError) as caught:
        mesh.build(jax.devices()[:8])
    text = str(caught.value)
    assert f"fsdp {mesh.fsdp} x tensor {mesh.tensor} does not fit 8 device(s)" in text
    assert "the product must be 8 (each axis one of 1, 2, 4, 8)" in text


@pytest.mark.parametrize("settings", [{"fsdp": 0}, {"tensor": -1}, {"data": "all"}, {"pipeline": 2}])
def test_settings_without_a_meaning(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Mesh.model_validate(settings)


@pytest.mark.parametrize("data", [0, -8])
def test_no_device_for_data(data: int) -> None:
    with pytest.raises((ConfigError, ValidationError)):
        Mesh(data=data).build(jax.devices()[:8])
