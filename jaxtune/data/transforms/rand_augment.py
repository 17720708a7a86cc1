"""RandAugment on the device: a few random operations per image, all of one strength (Cubuk et al. 2019, arXiv:1909.13719).

Every row draws its own operations. Instead of a branch per operation, which a batch would run for every row anyway, the operations are
three stages that each cover a family of them: one warp by a matrix, one blend with a plainer image, one change of tones.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from pydantic import Field, PositiveInt

from jaxtune.core.errors import ConfigError
from jaxtune.data.augment import Batch, DeviceAugment
from jaxtune.data.transforms.augment_image import Fill

Operation = Literal[
    "identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "brightness", "contrast", "saturation", "sharpness",
    "posterize", "solarize", "invert", "auto_contrast", "equalize",
]  # fmt: skip
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
WARPS, BLENDS, TONES = OPERATIONS[1:6], OPERATIONS[6:10], OPERATIONS[10:]
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

# At magnitude 10.
ROTATION_RADIANS = math.radians(30)
SHEAR = 0.3
TRANSLATION = 0.45  # of the image's side
BLEND = 0.9  # factors from 1 - 0.9 to 1 + 0.9
LOST_BITS = 4


class RandAugment(DeviceAugment):
    """Applies random operations to each image.

    rotate, shear_x, shear_y, translate_x, translate_y: up to 30 degrees, 0.3, 45 % of the side, in a random direction. brightness,
    contrast, saturation, sharpness: less or more, by a factor from 0.1 to 1.9. posterize: up to 4 of 8 bits go. solarize: values above
    a threshold are inverted. invert, auto_contrast, equalize, identity: without strength.
    """

    operations: PositiveInt = Field(default=2, description="operations per image, one after the other")
    magnitude: Annotated[float, Field(gt=0, le=10)] = Field(default=9.0, description="strength, up to 10")
    choices: tuple[Operation, ...] | None = Field(
        None, min_length=1, description="operations to choose from; default: all (saturation only where images have colours)"
    )
    fill: Fill = 127.5

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        image = self.image(batch).astype(jnp.float32)
        choices = self.possible(image.shape[-1])
        for number in range(self.operations):
            for_choice, for_sign = jax.random.split(jax.random.fold_in(key, number))
            numbers = jnp.array([OPERATIONS.index(choice) for choice in choices], jnp.int32)
            operation = numbers[jax.random.randint(for_choice, image.shape[:1], 0, len(choices))]
            sign = jnp.where(jax.random.bernoulli(for_sign, shape=image.shape[:1]), 1.0, -1.0)
            image = self.apply(image, operation, sign, choices)
        return {**batch, "image": image}

    def possible(self, channels: int) -> tuple[Operation, ...]:
        """Raises:
        ConfigError: saturation was asked for, and the images have no colours.
        """
        if channels == 3:
            return self.choices or OPERATIONS
        if self.choices and "saturation" in self.choices:
            raise ConfigError(f"augment rand_augment: saturation does nothing to images with {channels} channel(s); take it out of choices")
        return self.choices or tuple(name for name in OPERATIONS if name != "saturation")

    def apply(
        self,
        image: Float[Array, "B Y X C"],
        operation: Int[Array, " B"],
        sign: Float[Array, " B"],
        choices: tuple[Operation, ...] = OPERATIONS,
    ) -> Float[Array, "B Y X C"]:
        """One operation per row, given by its number in OPERATIONS; what is not among `choices` is not compiled."""
        strength = self.magnitude / 10
        if any(name in choices for name in WARPS):
            image = jax.vmap(warp, (0, 0, None))(image, matrices(operation, sign * strength, image.shape[1:3]), self.fill)
        if any(name in choices for name in BLENDS):
            factor = jnp.where(_any_of(operation, BLENDS), 1.0 + BLEND * strength * sign, 1.0)[:, None, None, None]
            plainer = plain_image(image, operation)
            image = jnp.clip(plainer + factor * (image - plainer), 0.0, 255.0)
        for name in TONES:
            if name in choices:
                image = jnp.where(_is(operation, name)[:, None, None, None], tone(name, image, strength), image)
        return image


def _is(operation: jax.Array, name: Operation) -> jax.Array:
    return operation == OPERATIONS.index(name)


def _any_of(operation: jax.Array, names: tuple[Operation, ...]) -> jax.Array:
    return (operation >= OPERATIONS.index(names[0])) & (operation <= OPERATIONS.index(names[-1]))


def matrices(operation: Int[Array, " B"], amount: Float[Array, " B"], size: tuple[int, ...]) -> Float[Array, "B 2 3"]:
    """For each row, output place -> input place, (y, x) from the image's centre; the identity for operations that do not warp."""
    zero = jnp.zeros_like(amount)

    def only(name: Operation, value: jax.Array) -> jax.Array:
        return jnp.where(_is(operation, name), value, zero)

    angle = only("rotate", ROTATION_RADIANS * amount)
    rows = (
        (jnp.cos(angle), jnp.sin(angle) + only("shear_y", SHEAR * amount), only("translate_y", TRANSLATION * size[0] * amount)),
        (-jnp.sin(angle) + only("shear_x", SHEAR * amount), jnp.cos(angle), only("translate_x", TRANSLATION * size[1] * amount)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], 1)


def warp(image: Float[Array, "Y X C"], matrix: Float[Array, "2 3"], fill: float) -> Float[Array, "Y X C"]:
    """Bilinear; the identity matrix gives the very same pixels."""
    height, width, _ = image.shape
    y = (jnp.arange(height) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width) - (width - 1) / 2)[None, :]
    place = [row[0] * y + row[1] * x + row[2] + (edge - 1) / 2 for row, edge in zip(matrix, (height, width), strict=True)]
    return jax.vmap(lambda plane: jax.scipy.ndimage.map_coordinates(plane, place, 1, "constant", fill), -1, -1)(image)


def plain_image(image: Float[Array, "B Y X C"], operation: Int[Array, " B"]) -> Float[Array, "B Y X C"]:
    """What each row's blend starts from: black (brightness), its mean grey (contrast), grey (saturation), smoothed (sharpness)."""
    grey = grey_of(image)
    mean = jnp.broadcast_to(grey.mean((1, 2), keepdims=True), image.shape)
    plainer = jnp.zeros_like(image)
    known: dict[Operation, jax.Array] = {"contrast": mean, "saturation": jnp.broadcast_to(grey, image.shape), "sharpness": smooth(image)}
    for name, values in known.items():
        plainer = jnp.where(_is(operation, name)[:, None, None, None], values, plainer)
    return plainer


def grey_of(image: Float[Array, "B Y X C"]) -> Float[Array, "B Y X 1"]:
    channels = image.shape[-1]
    weights = jnp.array(LUMA if channels == 3 else (1 / channels,) * channels, jnp.float32)
    return jnp.einsum("BYXC,C->BYX", image, weights, precision="highest")[..., None]


def smooth(image: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
    """A 3 x 3 mean in which the middle counts five times (as Pillow's SMOOTH); edge pixels stay."""
    height, width = image.shape[1:3]
    if min(height, width) < 3:
        return image
    total = sum(image[:, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)) + 4 * image[:, 1:-1, 1:-1]
    return image.at[:, 1:-1, 1:-1].set(total / 13)


def tone(name: Operation, image: Float[Array, "B Y X C"], strength: float) -> Float[Array, "B Y X C"]:
    """The image with other values in the same places."""
    if name == "posterize":
        step = 2 ** max(1, round(LOST_BITS * strength))
        return jnp.floor(image / step) * step
    if name == "solarize":
        return jnp.where(image < 255.0 * (1.0 - strength), image, 255.0 - image)
    if name == "invert":
        return 255.0 - image
    if name == "auto_contrast":
        low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
        return jnp.where(high > low, (image - low) * (255.0 / jnp.where(high > low, high - low, 1.0)), image)
    return jax.vmap(jax.vmap(equalize, -1, -1))(image)


def equalize(plane: Float[Array, "Y X"]) -> Float[Array, "Y X"]:
    """Values spread so that all are equally frequent, as far as equal values allow; a plane of one value stays.

    The counts come from a sort, which accelerators do faster than a histogram's scattered additions.
    """
    values = jnp.clip(jnp.round(plane), 0, 255)
    below = jnp.searchsorted(jnp.sort(values.ravel()), jnp.arange(256, dtype=values.dtype), side="right")  # pixels up to each value
    first = below[values.min().astype(jnp.int32)]
    spread = 255.0 * (below - first) / jnp.maximum(plane.size - first, 1)
    return jnp.where(first < plane.size, spread[values.astype(jnp.int32)], plane)
