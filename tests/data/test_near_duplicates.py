"""Near copies across splits: held against all pairs compared one by one, with planted copies and with what must not be taken for one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from jaxtune.data.near_duplicates import (
    HASHES,
    SIDE,
    jaccard,
    near_images,
    near_texts,
    perceptual_hashes,
    signatures,
    small_grey,
    word_groups,
)

WORDS = [f"word{i}" for i in range(400)]


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choices(WORDS, k=length)) for _ in range(count)]


def edited(text: str, share: float, seed: int) -> str:
    dice = random.Random(seed)
    return " ".join(dice.choice(WORDS) if dice.random() < share else word for word in text.split())


def by_hand(a: str, b: str) -> float:
    one, other = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a.split(), b.split()))
    return len(one & other) / len(one | other)


def test_the_same_pairs_as_comparing_all() -> None:
    corpus = texts(120, 60)
    corpus += [edited(corpus[i], 0.02 * (i % 6), i) for i in range(60)]  # from equal to a third changed
    sides = ["train"] * 120 + ["test"] * 60
    wanted = {
        (i, j): likeness
        for i in range(120)
        for j in range(120, 180)
        if (likeness := by_hand(corpus[i], corpus[j])) >= 0.7
    }  # fmt: skip
    found = {(pair.first, pair.second): pair.likeness for pair in near_texts(corpus, sides)}
    assert found.keys() == wanted.keys() and len(found) > 25
    for pair, likeness in found.items():
        assert likeness == pytest.approx(wanted[pair], abs=1e-12)


def test_the_most_alike_come_first_and_one_side_is_not_compared_with_itself() -> None:
    one = texts(1, 50)[0]
    corpus = [one, one, " ".join(["another", *one.split()[1:]]), "", "", "!?"]
    found = near_texts(corpus, ["train", "train", "test", "train", "test", "test"])
    assert [(pair.first, pair.second) for pair in found] == [(0, 2), (1, 2)]
    assert near_texts(corpus, ["train"] * 6) == []
    values = [pair.likeness for pair in near_texts([*corpus[:3], one], ["train", "train", "test", "test"])]
    assert values == sorted(values, reverse=True) and values[0] == 1.0


def test_case_and_marks_do_not_matter_but_the_order_of_words_does() -> None:
    assert np.array_equal(word_groups("The Cat, sat: down"), word_groups("the cat sat DOWN!"))
    assert jaccard(word_groups("a b c d e f"), word_groups("f e d c b a")) == 0.0
    assert len(word_groups("one two")) == 1 and len(word_groups("")) == 0


def test_boilerplate_does_not_explode() -> None:
    same = texts(1, 40)[0]
    found = near_texts([same] * 3000, ["train", "test"] * 1500)
    assert 1500 < len(found) < 3000 * 40


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_signatures_agree_as_often_as_the_jaccard_index_says(share: float) -> None:
    one = " ".join(f"w{i}" for i in range(600))
    dice = random.Random(1)
    other = " ".join(f"x{i}" if dice.random() < share else f"w{i}" for i in range(600))
    groups = [word_groups(one), word_groups(other)]
    marks = signatures(groups, hashes=4000)
    index = jaccard(*groups)
    assert (marks[0] == marks[1]).mean() == pytest.approx(index, abs=4 * np.sqrt(index * (1 - index) / 4000) + 1e-9)
    assert signatures(groups).shape == (2, HASHES)


def scene(seed: int) -> np.ndarray:
    """Blocks of grey, as photographs have large shapes."""
    return np.kron(np.random.default_rng(seed).integers(0, 255, (6, 6)), np.ones((16, 16))).astype(np.uint8)


def test_images_of_another_size_brightness_or_noise_are_found_and_others_are_not() -> None:
    pixels = [scene(i) for i in range(40)]
    brighter = np.clip(pixels[3].astype(float) * 0.8 + 30, 0, 255).astype(np.uint8)
    noisy = np.clip(pixels[5] + np.random.default_rng(0).normal(0, 6, pixels[5].shape), 0, 255).astype(np.uint8)
    smaller = pixels[7][::2, ::2]
    flat = np.full((40, 40), 90, np.uint8)
    images = [*pixels, flat, np.repeat(brighter[..., None], 3, 2), noisy, smaller, flat, scene(99)]
    small = np.stack([small_grey(image) for image in images])
    assert small.shape == (46, SIDE, SIDE)
    found = {(pair.first, pair.second) for pair in near_images(small, ["train"] * 41 + ["test"] * 5)}
    assert found == {(3, 41), (5, 42), (7, 43)}


def test_hashes_are_of_low_frequencies_against_a_slow_cosine_transform() -> None:
    from scipy.fft import dctn

    small = np.stack([small_grey(scene(i)) for i in range(5)])
    for image, found in zip(small, perceptual_hashes(small), strict=True):
        low = dctn(image.astype(float), type=2)[:8, :8].reshape(-1) / 4  # scipy doubles each axis
        low[0] = 0.0
        bits = low > np.median(low)
        assert [bool(int(found) >> i & 1) for i in range(64)] == bits.tolist()
