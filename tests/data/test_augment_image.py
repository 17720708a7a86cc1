"""Image augmentation: what each operation does to pixels, that rows differ, and that padded rows take no part."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.data import AUGMENTS
from jaxtune.data.augment import Augment, DeviceAugment, HostAugment, device_part, host_part
from jaxtune.data.processor import Processor
from jaxtune.data.transforms.augment_image import Crop, Cutout, Flip, Mixup, ResizedCrop, partners
from jaxtune.data.transforms.rand_augment import OPERATIONS, Operation, RandAugment, equalize, matrices, warp

KEY = jax.random.key(3)
ROWS, HEIGHT, WIDTH = 16, 12, 10
DEVICE = [Flip(), Crop(), Crop(border="reflect"), ResizedCrop(), Cutout(), Mixup(), RandAugment()]


def batch(channels: int = 3, rows: int = ROWS, padded: int = 0) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    weight = np.ones(rows, np.float32)
    weight[rows - padded :] = 0
    return {
        "image": jnp.asarray(random.integers(0, 256, (rows, HEIGHT, WIDTH, channels), np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, rows), jnp.int32),
        "loss_weight": jnp.asarray(weight),
    }


def changed(augment: DeviceAugment, given: dict[str, jax.Array] | None = None, key: jax.Array = KEY) -> dict[str, np.ndarray]:
    run = jax.jit(lambda given, key: augment(given, key, 3))
    return {name: np.asarray(value) for name, value in run(given or batch(), key).items()}


@pytest.mark.parametrize(
    ("augment", "channels"),
    [*((augment, 3) for augment in DEVICE), (ResizedCrop(), 1), (RandAugment(), 1)],
    ids=lambda value: repr(value)[:24],
)
def test_every_augment_keeps_shape_and_range_and_follows_the_key(augment: DeviceAugment, channels: int) -> None:
    given = batch(channels)
    once, again, other = changed(augment, given), changed(augment, given), changed(augment, given, jax.random.key(4))
    image = once["image"]
    assert image.shape == given["image"].shape
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 255.001
    assert np.array_equal(image, again["image"])
    assert not np.array_equal(image, other["image"])
    assert not np.array_equal(image, np.asarray(given["image"]))


@pytest.mark.parametrize("augment", DEVICE, ids=lambda augment: type(augment).__name__)
def test_batches_without_images_are_refused(augment: DeviceAugment) -> None:
    given = {name: value for name, value in batch().items() if name != "image"}
    with pytest.raises(ConfigError, match=f"{type(augment).__name__} changes images, but this task's batches hold label, loss_weight"):
        augment(given, KEY, 3)


@pytest.mark.parametrize("augment", DEVICE[:5] + DEVICE[6:], ids=lambda augment: type(augment).__name__)
def test_rows_are_changed_differently(augment: DeviceAugment) -> None:
    given = batch()
    given["image"] = jnp.broadcast_to(given["image"][:1], given["image"].shape)
    image = changed(augment, given)["image"]
    assert len(np.unique(image.reshape(ROWS, -1), axis=0)) > 1


def test_flip_mirrors_some_rows_and_leaves_the_others() -> None:
    given = batch()
    for direction, axis in (("horizontal", 1), ("vertical", 0)):
        out = changed(Flip(direction=direction), given)["image"]
        assert out.dtype == np.uint8
        mirrored = [np.array_equal(new, np.flip(old, axis)) for new, old in zip(out, np.asarray(given["image"]), strict=True)]
        same = [np.array_equal(new, old) for new, old in zip(out, np.asarray(given["image"]), strict=True)]
        assert any(mirrored) and any(same) and all(m != s for m, s in zip(mirrored, same, strict=True))
    always = changed(Flip(probability=1.0), given)["image"]
    assert np.array_equal(always, np.asarray(given["image"])[:, :, ::-1])


def test_crop_shifts_and_fills() -> None:
    given = batch()
    out = changed(Crop(padding=2, fill=7), given)["image"]
    for new, old in zip(out, np.asarray(given["image"]), strict=True):
        padded = np.pad(old, ((2, 2), (2, 2), (0, 0)), constant_values=7)
        places = [padded[y : y + HEIGHT, x : x + WIDTH] for y in range(5) for x in range(5)]
        assert sum(np.array_equal(new, place) for place in places) == 1
    with pytest.raises(ConfigError, match="needs larger images than 12 x 10"):
        changed(Crop(padding=10, border="reflect"), given)


def test_resized_crop_of_the_whole_image_is_the_image() -> None:
    given = batch()
    whole = changed(ResizedCrop(scale=(1.0, 1.0), ratio=(WIDTH / HEIGHT, WIDTH / HEIGHT)), given)["image"]
    np.testing.assert_allclose(whole, np.asarray(given["image"]), atol=1e-2)


def test_resized_crop_enlarges_a_part_inside_the_image() -> None:
    slope = np.broadcast_to(np.arange(WIDTH, dtype=np.float32)[None, None, :, None] * 10, (ROWS, HEIGHT, WIDTH, 3))
    given = {**batch(), "image": jnp.asarray(slope)}
    out = changed(ResizedCrop(scale=(0.2, 0.3)), given)["image"]
    steps = np.diff(out[:, 0, 2:-2, 0], axis=1)
    assert (steps < 10).all() and (steps > 2).all()  # a quarter of the area: half the slope
    assert len(np.unique(out[:, 0, 0, 0].round())) > 3
    with pytest.raises(ValidationError, match="smaller number first"):
        ResizedCrop(scale=(0.9, 0.1))


def test_cutout_covers_a_square() -> None:
    given = {**batch(), "image": jnp.full((ROWS, 20, 20, 1), 9, jnp.uint8)}
    out = changed(Cutout(side=0.3, fill=200), given)["image"][..., 0]
    assert set(np.unique(out)) == {9.0, 200.0}
    covered = out == 200
    for row in covered:
        down, across = row.any(1).sum(), row.any(0).sum()
        assert row.sum() == down * across and 1 <= down <= 7 and 1 <= across <= 7
    sometimes = changed(Cutout(probability=0.5), given)["image"]
    assert 0 < (sometimes == 127.5).any((1, 2, 3)).sum() < ROWS


def test_mixup_blends_images_and_targets_alike() -> None:
    given = batch()
    given["label"] = jnp.arange(ROWS, dtype=jnp.int32)
    out = {name: np.asarray(value) for name, value in jax.jit(lambda given: Mixup(alpha=1.0)(given, KEY, ROWS))(given).items()}
    assert "label" not in out
    np.testing.assert_allclose(out["target"].sum(1), 1.0, atol=1e-6)
    assert (np.diag(out["target"]) >= 0.5 - 1e-6).all() and ((out["target"] > 0).sum(1) == 2).all()
    mixed = np.einsum("BC,CYXD->BYXD", out["target"], np.asarray(given["image"], np.float32))
    np.testing.assert_allclose(out["image"], mixed, atol=1e-2)


def test_mixup_takes_given_targets() -> None:
    given = batch()
    del given["label"]
    given["target"] = jnp.asarray(np.random.default_rng(1).integers(0, 2, (ROWS, 5)), jnp.float32)
    out = changed(Mixup(), given)
    assert out["target"].shape == (ROWS, 5)
    np.testing.assert_allclose(out["target"].sum(0), np.asarray(given["target"]).sum(0), atol=6)


@pytest.mark.parametrize("padded", [1, ROWS - 1, ROWS])
def test_mixup_leaves_padded_rows_alone(padded: int) -> None:
    given = batch(padded=padded)
    real = ROWS - padded
    given["image"] = given["image"].astype(jnp.float32).at[real:].set(0)
    poisoned = {**given, "image": given["image"].at[real:].set(jnp.nan)}
    out = changed(Mixup(alpha=1.0), poisoned)
    assert np.isfinite(out["image"][:real]).all()
    kept = changed(Mixup(alpha=1.0), given)
    assert np.array_equal(kept["image"][real:], np.asarray(given["image"])[real:])
    assert np.array_equal(kept["loss_weight"], np.asarray(given["loss_weight"]))
    if real == 1:
        assert np.array_equal(kept["image"][:1], np.asarray(given["image"])[:1])


def test_partners_are_a_circle_of_real_rows() -> None:
    real = jnp.asarray(np.random.default_rng(2).random(ROWS) < 0.6)
    found = np.asarray(partners(KEY, real))
    alive = np.flatnonzero(real)
    assert np.array_equal(found[~np.asarray(real)], np.flatnonzero(~np.asarray(real)))
    assert set(found[alive]) == set(alive) and (found[alive] != alive).all()
    seen, row = [], alive[0]
    while row not in seen:
        seen.append(row)
        row = found[row]
    assert len(seen) == len(alive)


# -- RandAugment --------------------------------------------------------------------------------------------------------


def applied(name: Operation, image: np.ndarray, sign: float = 1.0, magnitude: float = 10.0) -> np.ndarray:
    choices = (name,) if magnitude != 10 or name in OPERATIONS[10:] else OPERATIONS[:10]  # few programs to compile
    rows, number = np.float32(image)[None], np.array([OPERATIONS.index(name)], np.int32)
    return np.asarray(jitted(magnitude, choices)(rows, number, np.array([sign], np.float32)))[0]


@cache
def jitted(magnitude: float, choices: tuple[Operation, ...]) -> Any:
    augment = RandAugment(magnitude=magnitude)
    return jax.jit(lambda image, operation, sign: augment.apply(image, operation, sign, choices))


def picture(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (11, 9, channels)).astype(np.float32)


def test_identity_gives_the_very_same_pixels() -> None:
    assert np.array_equal(applied("identity", picture()), picture())


def test_every_other_operation_changes_pixels_and_grows_with_magnitude() -> None:
    without_strength = ("identity", "invert", "auto_contrast", "equalize")
    image = np.clip(picture(), 20, 200)
    for name in OPERATIONS[1:]:
        strong, weak = (np.abs(applied(name, image, magnitude=m) - image).mean() for m in (10.0, 1.5))
        assert strong > 0, name
        assert name in without_strength or weak < strong, name


def test_opposite_signs_go_opposite_ways() -> None:
    image = np.full((9, 9, 3), 100, np.float32)
    assert applied("brightness", image, 1.0).mean() == pytest.approx(190, abs=0.1)
    assert applied("brightness", image, -1.0).mean() == pytest.approx(10, abs=0.1)
    spot = np.zeros((21, 21, 3), np.float32)
    spot[10, 10] = 255
    for name, axis in (("translate_x", 1), ("translate_y", 0)):
        where = [np.argwhere(np.where(applied(name, spot, sign) > 127.6, 1, 0)[..., 0])[0] for sign in (1.0, -1.0)]
        assert where[0][axis] < 10 < where[1][axis] and where[0][1 - axis] == 10


def test_rotation_is_a_rotation() -> None:
    image = np.zeros((41, 41, 1), np.float32)
    image[20, 35] = image[20, 34] = image[20, 36] = 255
    operation, sign = jnp.array([OPERATIONS.index("rotate")]), jnp.ones(1)
    turned = np.asarray(jax.jit(lambda image: warp(image, matrices(operation, sign, (41, 41))[0], 0.0))(image))[..., 0]
    centre = (np.argwhere(turned > 0) * turned[turned > 0][:, None]).sum(0) / turned.sum() - 20
    assert np.hypot(*centre) == pytest.approx(15, abs=0.3)
    assert abs(np.degrees(np.arctan2(centre[0], centre[1]))) == pytest.approx(30, abs=1)


def test_tones_equal_pillows() -> None:
    image = picture()
    pillow = Image.fromarray(image.astype(np.uint8))
    assert np.array_equal(applied("invert", image), np.asarray(ImageOps.invert(pillow)))
    assert np.array_equal(applied("posterize", image), np.asarray(ImageOps.posterize(pillow, 4)))
    assert np.array_equal(applied("solarize", image, magnitude=5.0), np.asarray(ImageOps.solarize(pillow, 128)))
    np.testing.assert_allclose(applied("auto_contrast", image), np.asarray(ImageOps.autocontrast(pillow)), atol=1)


def test_equalize_makes_values_equally_frequent() -> None:
    dark = np.random.default_rng(0).integers(10, 42, (64, 64)).astype(np.float32)
    flat = np.sort(np.asarray(jax.jit(equalize)(jnp.asarray(dark))).ravel())
    np.testing.assert_allclose(flat, np.linspace(0, 255, flat.size), atol=12)
    one = jnp.full((4, 4), 33.0)
    assert np.array_equal(np.asarray(jax.jit(equalize)(one)), np.asarray(one))


def test_blends() -> None:
    image = picture()
    grey = applied("saturation", image, -1.0)
    assert np.ptp(grey, axis=-1).max() < 0.11 * 256 < np.ptp(image, axis=-1).max()
    flat = applied("contrast", image, -1.0)
    assert flat.std() == pytest.approx(0.1 * image.std(), rel=0.05)
    assert applied("sharpness", image, -1.0)[1:-1, 1:-1].std() < image[1:-1, 1:-1].std()


def test_only_the_chosen_operations_happen() -> None:
    given = batch()
    inverted = changed(RandAugment(operations=1, choices=("invert",)), given)["image"]
    assert np.array_equal(inverted, 255.0 - np.asarray(given["image"], np.float32))
    twice = changed(RandAugment(operations=2, choices=("invert",)), given)["image"]
    assert np.array_equal(twice, np.asarray(given["image"], np.float32))
    with pytest.raises(ConfigError, match="saturation does nothing to images with 1 channel"):
        changed(RandAugment(choices=("saturation",)), batch(1))


# -- as components ------------------------------------------------------------------------------------------------------

ONE: TypeAdapter[Any] = TypeAdapter(Annotated[Augment, OneOf(AUGMENTS)])


@pytest.mark.parametrize("kind", sorted(AUGMENTS))
def test_every_kind_is_made_from_its_name_and_written_back(kind: str) -> None:
    made = ONE.validate_python(kind)
    assert isinstance(made, HostAugment | DeviceAugment)
    written = ONE.dump_python(made)
    assert written["kind"] == kind and ONE.validate_python(written) == made


def test_device_part_applies_all_in_order_with_their_own_randomness() -> None:
    assert device_part([], 3) is None and host_part([Flip()], Processor()) == ()
    chosen = device_part([Flip(), Flip(), Crop()], 3)
    assert chosen is not None
    given = batch()
    expected: Any = given
    for number, augment in enumerate((Flip(), Flip(), Crop())):
        expected = augment(expected, jax.random.fold_in(KEY, number), 3)
    out = jax.jit(chosen)(given, KEY)
    np.testing.assert_allclose(np.asarray(out["image"]), np.asarray(expected["image"]), atol=1e-3)
    once = Flip()(given, jax.random.fold_in(KEY, 0), 3)["image"]
    twice = Flip()({**given, "image": once}, jax.random.fold_in(KEY, 1), 3)["image"]
    assert not np.array_equal(np.asarray(twice), np.asarray(given["image"]))


def test_the_same_on_many_devices() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    change = device_part([Flip(), Crop(), ResizedCrop(), RandAugment(), Mixup()], 3)
    assert change is not None
    one = jax.jit(change)(batch(padded=3), KEY)
    eight = jax.jit(change)(jax.device_put(batch(padded=3), rows), KEY)
    for name in one:
        np.testing.assert_allclose(np.asarray(eight[name]), np.asarray(one[name]), atol=2e-3)
