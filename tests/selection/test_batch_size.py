"""The gradient noise scale against gradients whose noise is known, and sentences that say what was found."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtune.selection.batch_size import Fit, Largest, NoiseScale, estimate, sentences


def gradients(blocks: int, pieces: int, rows: int, size: float, noise: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Squared norms (small, big) of mean gradients of Gaussian examples: true gradient of norm `size`, covariance diag(noise ** 2)."""
    random = np.random.default_rng(seed)
    true = np.zeros(len(noise))
    true[0] = size
    each = true + noise * random.standard_normal((blocks, pieces, rows, len(noise))).mean(axis=2)
    return (each**2).sum(axis=2), (each.mean(axis=1) ** 2).sum(axis=1)


@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
def test_the_scale_is_that_of_known_gradients(size: float) -> None:
    noise = np.linspace(0.1, 2.0, 50)
    value, low, high = estimate(*gradients(400, 8, 4, size, noise), 4, 32)
    assert value == pytest.approx((noise**2).sum() / size**2, rel=0.15)
    assert low is not None and high is not None and low < value < high  # type: ignore[operator]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    noise = np.full(40, 1.0)
    held = 0
    for seed in range(100):
        _, low, high = estimate(*gradients(16, 8, 2, 2.0, noise, seed), 2, 16)
        held += (low or 0.0) <= 10.0 <= (high if high is not None else np.inf)
    assert held >= 85


def test_noise_that_hides_the_gradient_has_no_upper_end() -> None:
    _, _, high = estimate(*gradients(16, 8, 2, 0.01, np.full(40, 1.0)), 2, 16)
    assert high is None
    assert estimate(np.ones((2, 8)), np.ones(2), 2, 16) == (None, None, None)


def largest(limit: int | None = 2 * 2**30) -> Largest:
    return Largest(
        (Fit(32, 2**29, True), Fit(64, 2**30, True), Fit(128, 2**32, False)), 64, 128, limit, "128 rows would need 4 GiB of 2 GiB"
    )


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (NoiseScale(30.0, 20.0, 50.0, 40, 16), "about 30 rows; the present 32 rows are about right"),
        (NoiseScale(5.0, 3.0, 9.0, 40, 16), "about 5 rows; the present 32 rows average more than is needed"),
        (
            NoiseScale(200.0, 90.0, None, 40, 16),
            "about 200 rows; a larger batch than the present 32 rows needs nearly proportionally fewer",
        ),
        (NoiseScale(None, 90.0, None, 40, 16), "more than can be measured here"),
        (NoiseScale(None, None, None, 40, 0), "too small to measure"),
    ],
)
def test_the_sentences(scale: NoiseScale, told: str) -> None:
    found = sentences(32, largest(), [scale])
    assert found[0] == "Largest batch: 64 rows of 128 tokens need 1 GiB, of 2 GiB; 128 rows would need 4 GiB of 2 GiB."
    assert told in " ".join(found)


def test_the_later_scale_counts() -> None:
    found = sentences(32, largest(None), [NoiseScale(4.0, 3.0, 6.0, 0, 16), NoiseScale(300.0, 200.0, 500.0, 40, 16)])
    assert "the device does not say" in found[0]
    assert found[1] == "Gradient noise scale: 4 examples (3 to 6) at the start, 300 examples (200 to 500) after 40 steps."
    assert "about 300 rows" in found[2] and "64 rows fit at once" in found[2]
