"""Random changes of image batches on the device: flip, crop, resized crop, cutout, mixup.

Every row has its own random numbers, from the step's key and the row's place in the batch, so a resumed run sees the same images.
Images are u8 or float [B,Y,X,C] from 0 to 255; where pixels are computed they come out as f32.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from jaxtune.core.errors import ConfigError
from jaxtune.data.augment import Batch, DeviceAugment

Share = Annotated[float, Field(gt=0, le=1)]
Fill = Annotated[float, Field(ge=0, le=255, description="value of pixels that come from outside the image, 0 (black) to 255 (white)")]


class Flip(DeviceAugment):
    """Mirrors images. Not for classes that a mirror changes: digits, letters, left and right."""

    probability: Share = Field(default=0.5, description="share of the images that are mirrored")
    direction: Literal["horizontal", "vertical"] = Field(default="horizontal", description="horizontal swaps left and right")

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        image = self.image(batch)
        chosen = jax.random.uniform(key, image.shape[:1]) < self.probability
        mirrored = jnp.flip(image, 2 if self.direction == "horizontal" else 1)
        return {**batch, "image": jnp.where(chosen[:, None, None, None], mirrored, image)}


class Crop(DeviceAugment):
    """Shifts images by up to `padding` pixels in each direction: pads, then cuts the old size at a random place."""

    padding: PositiveInt = Field(default=4, description="pixels added on every side before cutting")
    border: Literal["constant", "reflect"] = Field(
        "constant", description="what is added: one value (fill), or the image mirrored at its edge"
    )
    fill: Fill = 0.0

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        image = self.image(batch)
        if self.border == "reflect" and self.padding >= min(image.shape[1:3]):
            size = f"{image.shape[1]} x {image.shape[2]}"
            raise ConfigError(
                f"augment crop: padding {self.padding} with border: reflect needs larger images than {size}; use less padding"
            )
        sides = ((0, 0), (self.padding, self.padding), (self.padding, self.padding), (0, 0))
        settings = {"constant_values": round(self.fill)} if self.border == "constant" else {}
        padded = jnp.pad(image, sides, mode=self.border, **settings)
        corners = jax.random.randint(key, (image.shape[0], 2), 0, 2 * self.padding + 1)

        def cut(pixels: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(pixels, (corner[0], corner[1], jnp.zeros((), corner.dtype)), image.shape[1:])

        return {**batch, "image": jax.vmap(cut)(padded, corners)}


class ResizedCrop(DeviceAugment):
    """Enlarges a random part of each image to the full size (Szegedy et al. 2015, arXiv:1409.4842), bilinear with antialiasing."""

    scale: tuple[Share, Share] = Field((0.08, 1.0), description="smallest and largest share of the area that is kept")
    ratio: tuple[PositiveFloat, PositiveFloat] = Field((3 / 4, 4 / 3), description="smallest and largest width / height of the part")

    @field_validator("scale", "ratio")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"expected the smaller number first, found {list(value)}")
        return value

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        image = self.image(batch)
        rows, height, width, _ = image.shape
        for_area, for_ratio, for_place = jax.random.split(key, 3)
        area = height * width * jax.random.uniform(for_area, (rows,), minval=self.scale[0], maxval=self.scale[1])
        low, high = jnp.log(self.ratio[0]), jnp.log(self.ratio[1])
        ratio = jnp.exp(jax.random.uniform(for_ratio, (rows,), minval=low, maxval=high))
        full = jnp.array([height, width], jnp.float32)[None]
        part = jnp.minimum(jnp.stack([jnp.sqrt(area / ratio), jnp.sqrt(area * ratio)], 1), full)  # [B, 2]
        corner = jax.random.uniform(for_place, (rows, 2)) * (full - part)
        scale = full / part

        def enlarge(pixels: jax.Array, scale: jax.Array, corner: jax.Array) -> jax.Array:
            return jax.image.scale_and_translate(pixels, pixels.shape, (0, 1), scale, -corner * scale, "linear", antialias=True)

        return {**batch, "image": jax.vmap(enlarge)(image.astype(jnp.float32), scale, corner)}


class Cutout(DeviceAugment):
    """Covers a square around a random point of each image (DeVries and Taylor 2017, arXiv:1708.04552)."""

    probability: Share = Field(default=1.0, description="share of the images in which something is covered")
    side: Share = Field(default=0.25, description="side of the square as a share of the image's shorter side")
    fill: Fill = 127.5

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        image = self.image(batch)
        rows, height, width, _ = image.shape
        for_place, for_choice = jax.random.split(key)
        centre = jax.random.uniform(for_place, (rows, 2)) * jnp.array([height, width], jnp.float32)[None]
        half = self.side * min(height, width) / 2
        down = jnp.abs(jnp.arange(height)[None] + 0.5 - centre[:, :1]) < half  # [B, Y]
        across = jnp.abs(jnp.arange(width)[None] + 0.5 - centre[:, 1:]) < half  # [B, X]
        chosen = jax.random.uniform(for_choice, (rows,)) < self.probability
        covered = down[:, :, None] & across[:, None, :] & chosen[:, None, None]
        return {**batch, "image": jnp.where(covered[..., None], self.fill, image.astype(jnp.float32))}


class Mixup(DeviceAugment):
    """Blends each image and its target with those of another row (Zhang et al. 2017, arXiv:1710.09412).

    Labels become soft targets. Rows that only fill up the batch are neither changed nor used. The row's own share is the larger one.
    """

    alpha: PositiveFloat = Field(default=0.2, description="the share is drawn from Beta(alpha, alpha): larger values mix more")

    def __call__(self, batch: Batch, key: jax.Array, classes: int) -> dict[str, jax.Array]:
        for_share, for_partner = jax.random.split(key)
        weight = batch["loss_weight"]
        target = batch["target"].astype(jnp.float32) if "target" in batch else jax.nn.one_hot(batch["label"], classes, dtype=jnp.float32)
        partner = partners(for_partner, weight > 0)
        share = jax.random.beta(for_share, self.alpha, self.alpha, weight.shape)
        share = jnp.where(partner == jnp.arange(len(weight)), 1.0, jnp.maximum(share, 1.0 - share))

        def blend(values: jax.Array) -> jax.Array:
            own = share.reshape(share.shape + (1,) * (values.ndim - 1))
            return own * values + (1.0 - own) * values[partner]

        mixed = {**batch, "image": blend(self.image(batch).astype(jnp.float32)), "target": blend(target)}
        mixed.pop("label", None)
        return mixed


def partners(key: jax.Array, real: jax.Array) -> jax.Array:
    """i32[B]: for each real row another real row, each taken once (a random circle through them); the others have themselves."""
    rows = len(real)
    order = jnp.argsort(jax.random.uniform(key, (rows,)) + 2.0 * ~real)  # real rows first, shuffled
    count = jnp.sum(real)
    place = jnp.arange(rows)
    following = jnp.where(place < count, (place + 1) % jnp.maximum(count, 1), place)
    return jnp.zeros(rows, jnp.int32).at[order].set(order[following].astype(jnp.int32))
