"""Dropout whose masks are a cheap hash of (key, site, element index), never stored.

A mask bit is a pure function of the key and the element's global index, so it is the same however the array is sharded, it
fuses into the neighbouring elementwise operation, and the backward pass recomputes it instead of reading it back.
"""

from __future__ import annotations

import zlib
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, UInt32

Rate = Literal["hidden", "attention", "head"]


@struct.dataclass
class Dropout:
    """The noise of one step: a typed PRNG key and the rates, all traced, so that changing them compiles nothing.

    `None` in place of a Dropout means: statically off.
    """

    key: Array
    hidden: Float[Array, ""]
    attention: Float[Array, ""]
    head: Float[Array, ""]

    def fold(self, index: int | Array) -> Dropout:
        """Independent noise for e.g. layer `index`, which may be traced (inside a scan)."""
        return self.replace(key=jax.random.fold_in(self.key, index))

    def on(self, x: Float[Array, "..."], site: str, rate: Rate = "hidden") -> Float[Array, "..."]:
        """x with each element zeroed with the named rate's probability and the others scaled to keep the mean.

        `site` names the place within a layer: other places, other masks.
        """
        value = getattr(self, rate)
        keep = keep_mask(site_words(self.key, site), x.shape, value)
        scale = (1.0 / jnp.maximum(1.0 - value, 1e-6)).astype(x.dtype)
        return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))


def dropout(
    x: Float[Array, "..."], noise: Dropout | None, site: str, rate: Rate = "hidden"
) -> Float[Array, "..."]:
    """`noise.on(x, site, rate)`, or x itself when there is no noise."""
    return x if noise is None else noise.on(x, site, rate)


def site_words(key: Array, site: str) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    """Two uint32 words that stand for the key at this site."""
    data = jax.random.key_data(jax.random.fold_in(key, zlib.crc32(site.encode())))
    return data[..., 0], data[..., 1]


def keep_mask(
    words: tuple[UInt32[Array, ""], UInt32[Array, ""]], shape: tuple[int, ...], rate: Float[Array, ""]
) -> Array:
    """Boolean [*shape], True with probability 1 - rate."""
    if not shape:
        return keep_mask(words, (1,), rate)[0]
    first, second = words
    for axis in range(len(shape) - 1):
        index = jax.lax.broadcasted_iota(jnp.uint32, (*shape[:-1], 1), axis)
        first, second = _mix(first ^ (index * jnp.uint32(0x9E3779B1))), second + first
    column = jax.lax.broadcasted_iota(jnp.uint32, (1,) * (len(shape) - 1) + shape[-1:], len(shape) - 1)
    bits = first + column * jnp.uint32(0x85EBCA77)
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15) ^ second) * jnp.uint32(0x846CA68B)
    bits = bits ^ (bits >> 16)
    threshold = (jnp.clip(rate, 0.0, 1.0) * 4294967040.0).astype(jnp.uint32)
    return bits >= threshold


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32 bits where each input bit flips each output bit about half the time."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
