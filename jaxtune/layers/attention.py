"""Scaled dot-product attention within segments, one function for all families, with the implementations behind one switch.

`auto` takes the first implementation of the backend's list that can do what is asked; one that is named and cannot is refused.

Letters: B batch, T/S query/key tokens, N heads, K kv heads, G = N/K, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtune.core.errors import ConfigError
from jaxtune.layers.attention_cpu import MASKED, SITE, cpu_attention
from jaxtune.layers.attention_splash import splash_attention
from jaxtune.layers.dropout import Dropout
from jaxtune.layers.visibility import Visibility

Implementation = Literal["auto", "xla", "cpu", "cudnn", "splash"]

# What `auto` tries on each backend before the plain one, which can do everything.
PREFERRED: Mapping[str, tuple[Implementation, ...]] = {"cpu": ("cpu",), "gpu": ("cudnn",), "tpu": ("splash",)}
PLAIN: Implementation = "xla"


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    causal: bool = False,
    window: int | None = None,
    first_query: int | Int[Array, ""] = 0,
    scale: float | None = None,
    soft_cap: float | None = None,
    noise: Dropout | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(soft_cap tanh(q k^T scale / soft_cap)) v -> [B, T, N, H] in q.dtype; K divides N (grouped queries).

    Tokens see their own segment only (0 is padding, which sees all others), and only earlier or equal slots when `causal`, of
    which the last `window` (itself among them). The queries stand at the slots from `first_query`, which may be traced: one
    token against a cache of S slots. `key_segment_ids` is for keys that are not the queries' tokens (default: `segment_ids`).
    `scale` defaults to H^-0.5. `noise` drops probabilities at its attention rate. Outputs at padding are finite, no more.

    Raises:
        ConfigError: the implementation named cannot do this.
    """
    ask = _Ask(q, k, Visibility.of(segment_ids, key_segment_ids, causal, window, first_query), soft_cap, noise)
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    match chosen(implementation, ask):
        case "cpu":
            return cpu_attention(q, k, v, ask.sight, factor, soft_cap, noise)
        case "cudnn":
            return _cudnn(q, k, v, ask.sight, factor)
        case "splash":
            return splash_attention(q, k, v, ask.sight, factor, soft_cap)
        case _:
            return _xla(q, k, v, ask.sight, factor, soft_cap, noise)


class _Ask(NamedTuple):
    """What is asked of an implementation."""

    q: Array
    k: Array
    sight: Visibility
    soft_cap: float | None
    noise: Dropout | None


def chosen(implementation: Implementation, ask: _Ask, backend: str | None = None) -> Implementation:
    """The implementation that does it.

    Raises:
        ConfigError: the one named cannot.
    """
    backend = backend or jax.default_backend()
    if implementation == "auto":
        ways = (*PREFERRED.get(backend, ()), PLAIN)
        return next(way for way in ways if not refusals(way, ask, backend))
    if reasons := refusals(implementation, ask, backend):
        raise ConfigError(f"attention: {implementation} cannot be used: {'; '.join(reasons)}. Set attention to auto, or to xla")
    return implementation


def refusals(implementation: Implementation, ask: _Ask, backend: str) -> list[str]:
    """Why an implementation cannot do it: the one table of what each of them lacks."""
    (_, queries, _, width), keys = ask.q.shape, ask.k.shape[1]
    sight, found = ask.sight, []
    if implementation == "cudnn":
        found = [
            (backend != "gpu", f"it runs on a gpu, not on {backend}"),
            (ask.noise is not None, "it has no dropout of probabilities"),
            (ask.soft_cap is not None, "it has no soft cap"),
            (sight.first_query is not None, "it cannot start at a later slot"),
            (ask.q.dtype not in (jnp.bfloat16, jnp.float16), f"it computes in bfloat16 and float16, not in {ask.q.dtype}"),
            (width % 8 != 0 or width > 128, f"a head's width is at most 128 and divides by 8, this is {width}"),
            (bool(queries % 2 or keys % 2), f"lengths must be even, these are {queries} and {keys}"),
            (sight.causal and queries != keys, f"causal lengths must be equal, these are {queries} and {keys}"),
        ]
    if implementation == "splash":
        found = [
            (backend != "tpu", f"it runs on a tpu, not on {backend}"),
            (ask.noise is not None, "it has no dropout of probabilities"),
            (not sight.causal, "it is used for causal attention only, because its padding sees padding"),
            (sight.first_query is not None, "it cannot start at a later slot"),
            (queries != keys or sight.key_segment_ids is not sight.segment_ids, "queries and keys must be the same tokens"),
        ]
    return [reason for wrong, reason in found if wrong]


def _xla(
    q: Array, k: Array, v: Array, sight: Visibility, scale: float, soft_cap: float | None, noise: Dropout | None
) -> Float[Array, "B T N H"]:
    """The formula as it stands."""
    (batch, queries, heads, width), (_, keys, kv_heads, _) = q.shape, k.shape
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    visible = sight.mask(range(queries), range(keys))
    if visible is not None:
        scores = jnp.where(visible[:, :, None], scores, MASKED)
    probabilities = jax.nn.softmax(scores, -1)
    if noise is not None:
        probabilities = noise.on(probabilities, SITE, "attention")
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities.astype(q.dtype), v).reshape(q.shape)


def _cudnn(q: Array, k: Array, v: Array, sight: Visibility, scale: float) -> Float[Array, "B T N H"]:
    """cuDNN's kernel by jax.nn: what is causal it skips by itself, segments come as a mask."""
    return jax.nn.dot_product_attention(
        q, k, v,
        mask=sight.segments(range(q.shape[1]), range(k.shape[1])),
        scale=scale,
        is_causal=sight.causal,
        local_window_size=None if sight.window is None else (sight.window - 1, 0),
        implementation="cudnn",
    )  # fmt: skip
