"""Rotary positions against complex multiplication, their counting, and the settings that are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.core.errors import ModelError
from jaxtune.layers.rotary import count_positions, read_rope, rotate, text_lengths

PLAIN = {"rope_type": "default", "rope_theta": 100.0}


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_turn_is_a_complex_product(part: float) -> None:
    rope = read_rope({**PLAIN, "partial_rotary_factor": part}, head_width=8, context=64)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 3, 0, 11, 2]], np.int32)
    half, width = int(8 * part) // 2, int(8 * part)
    speeds = 100.0 ** (-np.arange(half) / half)
    turn = np.exp(1j * positions[:, :, None, None] * speeds)
    product = (x[..., :half] + 1j * x[..., half:width]) * turn
    expected = np.concatenate([product.real, product.imag, x[..., width:]], -1)
    angles = rope.angles(jnp.asarray(positions), jnp.full((2, 5), 12))
    np.testing.assert_allclose(rotate(x, angles), expected, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(rotate(x, angles) * expected))(x)
    np.testing.assert_allclose(gradient, x, atol=1e-5, err_msg="the gradient of a turn is the turn back")
    assert rotate(x.astype(jnp.bfloat16), angles).dtype == jnp.bfloat16


def test_scores_depend_on_distance_alone() -> None:
    rope = read_rope(PLAIN, head_width=8, context=64)
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, rope.angles(jnp.full((1, 1), p), jnp.full((1, 1), 40))) for x, p in ((q, at), (k, other))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(3, 1) == pytest.approx(score(33, 31), abs=1e-5) != pytest.approx(score(3, 2), abs=1e-2)


def test_positions_count_real_tokens_of_each_segment() -> None:
    segments = jnp.array([[0, 0, 1, 1, 1, 0], [1, 1, 2, 2, 2, 3], [1, 1, 0, 0, 0, 0]])
    positions = count_positions(segments)
    np.testing.assert_array_equal(positions, [[0, 0, 0, 1, 2, 0], [0, 1, 0, 1, 2, 0], [0, 1, 0, 0, 0, 0]])
    lengths = text_lengths(positions, segments)
    np.testing.assert_array_equal(np.where(segments > 0, lengths, 0), [[0, 0, 3, 3, 3, 0], [2, 2, 3, 3, 3, 1], [2, 2, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rope_type": "spiral"}, 'rope_type "spiral" is not implemented (known: default, linear'),
        ({"rope_type": "linear"}, "rope_type linear needs factor"),
        ({"rope_type": "default", "factor": 2.0}, "rope setting factor=2.0 is not one of rope_type default"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}, "rope's short_factor has 1 numbers; expected 4"),
        ({"partial_rotary_factor": 0.4}, "3 of a head's 8 features would be turned; expected an even number"),
    ],
)
def test_what_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_rope({"rope_theta": 10.0, **settings}, head_width=8, context=64)
    assert text in str(caught.value)


def test_dynamic_theta_grows_beyond_the_context_only() -> None:
    rope = read_rope({"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}, head_width=8, context=16)
    plain = read_rope(PLAIN, head_width=8, context=16)
    positions = jnp.full((1, 3), 9)
    short, known = rope.angles(positions, jnp.array([[4, 12, 16]])), plain.angles(positions, jnp.array([[4, 12, 16]]))
    np.testing.assert_allclose(short.cos, known.cos, atol=1e-6)
    longer = rope.angles(positions, jnp.array([[17, 32, 64]])).sin
    assert len({float(value) for value in longer[0, :, 0, 1]}) == 3
