"""Rotary positions: queries and keys turned by angles proportional to their position (Su et al. 2021, arXiv 2104.09864).

A `Rope` says how fast each pair of features turns, with every scaling to longer texts that checkpoints use. Angles are made once per
forward pass and shared by all layers. The length that decides a scaling is that of a token's own text: transformers takes the longest text
of the batch, so that there a row's result depends on its neighbours; for one text at a time the two agree.

Letters: B batch, T tokens, N heads, H head dim, R turned features of a head (pairs are i and i + R/2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtune.core.errors import ModelError
from jaxtune.layers.cpu_math import compiled, narrow, on_cpu, widen


class Angles(NamedTuple):
    """Cosine and sine of every token's angles, times the rope's factor; float32.

    With the heads' axis already there: what a scan over layers saves for the backward pass is then these arrays, once for all layers.
    """

    cos: Float[Array, "B T 1 R/2"]
    sin: Float[Array, "B T 1 R/2"]


@dataclass(frozen=True)
class Stretch:
    """Dynamic scaling: theta grows with the text once that is longer than `original` tokens."""

    theta: float
    factor: float
    original: int


@dataclass(frozen=True)
class Rope:
    """How positions turn a head's first 2 len(speeds) features.

    Attributes:
        speeds: radians per position, one for each pair.
        factor: what turned features are multiplied with.
        long_speeds: speeds for texts of more than `original` tokens (LongRoPE).
        stretch: computes the speeds from the text's length instead.
    """

    speeds: tuple[float, ...]
    factor: float = 1.0
    long_speeds: tuple[float, ...] | None = None
    original: int = 0
    stretch: Stretch | None = None

    def angles(self, positions: Int[Array, "B T"], lengths: Int[Array, "B T"]) -> Angles:
        """For tokens at these positions of texts this long."""
        angle = positions.astype(jnp.float32)[..., None] * self._speeds(lengths.astype(jnp.float32)[..., None])
        return Angles(self.factor * jnp.cos(angle)[:, :, None], self.factor * jnp.sin(angle)[:, :, None])

    def _speeds(self, lengths: Float[Array, "B T 1"]) -> Float[Array, "B T R/2"]:
        speeds = _row(self.speeds)
        if self.long_speeds is not None:
            return jnp.where(lengths > self.original, _row(self.long_speeds), speeds)
        if self.stretch is None:
            return speeds
        width, stretch = 2 * len(self.speeds), self.stretch
        grown = stretch.factor * jnp.maximum(lengths, stretch.original) / stretch.original - (stretch.factor - 1)
        theta = stretch.theta * grown ** (width / (width - 2))
        return theta ** (-_row(np.arange(0, width, 2) / width))


def rotate(x: Float[Array, "B T N H"], angles: Angles) -> Float[Array, "B T N H"]:
    """x with its first R features turned, computed in float32; the others as they are."""
    turned = 2 * angles.cos.shape[-1]
    if turned == x.shape[-1]:
        return _turn(x, *angles)
    return jnp.concatenate([_turn(x[..., :turned], *angles), x[..., turned:]], -1)


@compiled
def _turned(x: Array, cos: Array, sin: Array) -> Array:
    first, second = jnp.split(widen(x), 2, -1)
    result = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return narrow(result, x.dtype) if on_cpu() else result.astype(x.dtype)


# The gradient of a turn is the turn back; positions have none.
_turn = jax.custom_vjp(lambda x, cos, sin: _turned(x, cos, sin))
_turn.defvjp(
    lambda x, cos, sin: (_turned(x, cos, sin), (cos, sin)),
    lambda saved, gradient: (_turned(gradient, saved[0], -saved[1]), jnp.zeros_like(saved[0]), jnp.zeros_like(saved[1])),
)


def count_positions(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Each token's place within its segment from 0, padding on either side; 0 for padding."""
    real = segment_ids > 0
    count = jnp.cumsum(real, 1, dtype=jnp.int32) - 1
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    start = jax.lax.cummax(jnp.where(real & (segment_ids != before), count, 0), axis=1)
    return jnp.where(real, count - start, 0)


def text_lengths(positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """How long the text of each token is: one more than the last position of its segment."""
    rows = jnp.arange(positions.shape[0])[:, None]
    longest = jnp.zeros((positions.shape[0], positions.shape[1] + 1), jnp.int32).at[rows, segment_ids].max(positions + 1, mode="drop")
    return jnp.take_along_axis(longest, segment_ids, 1, mode="clip")


SCALINGS: Mapping[str, frozenset[str]] = {  # rope_type -> what its settings may say beside rope_theta and partial_rotary_factor
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "original_max_position_embeddings"}
    ),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor", "original_max_position_embeddings"}),
}


def read_rope(settings: Mapping[str, Any], *, head_width: int, context: int) -> Rope:
    """The rope of a config's settings (`rope_parameters`, or older `rope_scaling` with its `rope_theta`).

    Args:
        context: max_position_embeddings, for which some scalings stand unless they name another length.

    Raises:
        ModelError: an unknown scaling, a setting that it does not have or lacks, or a list of the wrong length.
    """
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind not in SCALINGS:
        raise ModelError(f'config.json: rope_type "{kind}" is not implemented (known: {", ".join(SCALINGS)})')
    known = SCALINGS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    problems = [f"config.json: rope setting {key}={settings[key]!r} is not one of rope_type {kind}" for key in settings if key not in known]
    needed = SCALINGS[kind] & {"low_freq_factor", "high_freq_factor", "short_factor", "long_factor"}
    needed |= {"factor"} if kind in ("linear", "dynamic", "llama3") else set()
    problems += [f"config.json: rope_type {kind} needs {key}" for key in sorted(needed) if settings.get(key) is None]
    width = int(head_width * settings.get("partial_rotary_factor", 1.0))
    if width % 2 or width < 2:
        problems.append(f"config.json: {width} of a head's {head_width} features would be turned; expected an even number")
    lists = {key: settings[key] for key in ("short_factor", "long_factor") if isinstance(settings.get(key), list)}
    problems += [f"config.json: rope's {k} has {len(v)} numbers; expected {width // 2}" for k, v in lists.items() if len(v) != width // 2]
    if problems:
        raise ModelError(problems)
    theta = float(settings["rope_theta"])
    speeds = theta ** (-np.arange(0, width, 2) / width)
    original = settings.get("original_max_position_embeddings") or context
    if kind == "linear":
        return Rope(_tuple(speeds / settings["factor"]))
    if kind == "dynamic":
        return Rope(_tuple(speeds), stretch=Stretch(theta, settings["factor"], context))
    if kind == "llama3":
        return Rope(_tuple(_llama3(speeds, settings, original)))
    if kind == "yarn":
        return _yarn(speeds, theta, settings, original, context)
    if kind == "longrope":
        factor = settings.get("factor") or context / original
        own = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        scale = settings.get("attention_factor")
        short, long = (_tuple(speeds / np.array(settings[key], float)) for key in ("short_factor", "long_factor"))
        return Rope(short, own if scale is None else scale, long, original)
    return Rope(_tuple(speeds))


def _llama3(speeds: np.ndarray, settings: Mapping[str, Any], original: int) -> np.ndarray:
    """Slow pairs are slowed by `factor`, quick ones kept, between them a mixture by how often they turn within `original` tokens."""
    turns = original * speeds / (2 * math.pi)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * speeds + (1 - kept) * speeds / settings["factor"]


def _yarn(speeds: np.ndarray, theta: float, settings: Mapping[str, Any], original: int, context: int) -> Rope:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): as llama3, with the mixture linear in the pair's number, and features enlarged."""
    factor = settings.get("factor") or context / original
    width = 2 * len(speeds)

    def pair(turns: float) -> float:
        """The number of the pair that turns this often within `original` tokens."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(settings.get("beta_fast") or 32), pair(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    slowed = np.clip((np.arange(len(speeds)) - low) / ((high - low) or 0.001), 0.0, 1.0)
    scale = settings.get("attention_factor")
    if scale is None:
        over, under = settings.get("mscale"), settings.get("mscale_all_dim")
        scale = _enlarged(factor, over) / _enlarged(factor, under) if over and under else _enlarged(factor, 1.0)
    return Rope(_tuple(slowed * speeds / factor + (1 - slowed) * speeds), scale)


def _enlarged(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.tolist())


def _row(values: Any) -> Float[Array, "1 1 R/2"]:
    return jnp.asarray(values, jnp.float32)[None, None]
