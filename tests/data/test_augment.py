from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.data import AUGMENTS
from jaxtune.data.augment import Augment, host_part
from jaxtune.data.processor import Processor
from jaxtune.data.transforms.augment import RandomDeletion, RandomSwap

CLS, SEP = 101, 102


def row(first: list[int], second: list[int] | None = None) -> dict:
    tokens = [CLS, *first, SEP] + ([*second, SEP] if second is not None else [])
    types = [0] * (len(first) + 2) + [1] * (len(tokens) - len(first) - 2)
    return {"tokens": np.array(tokens, np.int32), "token_types": np.array(types, np.int32), "label": 3, "example_id": 8}


def texts(changed: dict) -> list[list[int]]:
    out: list[list[int]] = [[]]
    for token in changed["tokens"]:
        if token in (CLS, SEP):
            out.append([])
        else:
            out[-1].append(int(token))
    return out


words = st.lists(st.integers(1, 40), max_size=20)


@given(words, st.none() | words, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_deletion_keeps_order_special_tokens_and_one_token_of_each_text(first, second, share, seed):
    given_row = row(first, second)
    before = given_row["tokens"].copy()
    changed = RandomDeletion(share=share).protect([CLS, SEP])(given_row, np.random.default_rng(seed))
    np.testing.assert_array_equal(given_row["tokens"], before)
    assert changed["tokens"][0] == CLS and changed["tokens"][-1] == SEP and changed["label"] == 3
    assert (changed["tokens"] == SEP).sum() == (before == SEP).sum()
    for new, old in zip(texts(changed), texts(given_row), strict=True):
        rest = iter(old)
        assert all(token in rest for token in new) and bool(new) == bool(old)  # in the same order
    where = np.flatnonzero(changed["tokens"] == SEP)
    assert changed["token_types"].tolist() == [0] * (where[0] + 1) + [1] * (len(changed["tokens"]) - where[0] - 1)


@given(words, st.none() | words, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_swapping_only_moves_tokens_inside_a_text(first, second, share, seed):
    given_row = row(first, second)
    before = given_row["tokens"].copy()
    changed = RandomSwap(share=share).protect([CLS, SEP])(given_row, np.random.default_rng(seed))
    np.testing.assert_array_equal(given_row["tokens"], before)
    assert [sorted(text) for text in texts(changed)] == [sorted(text) for text in texts(given_row)]
    assert (changed["tokens"] == SEP).tolist() == (before == SEP).tolist()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_share_is_met_on_average(share):
    random = np.random.default_rng(0)
    whole = row(list(range(200, 207)), list(range(300, 350)))
    count = 57
    delete, swap = RandomDeletion(share=share).protect([CLS, SEP]), RandomSwap(share=share).protect([CLS, SEP])
    gone = np.mean([len(whole["tokens"]) - len(delete(whole, random)["tokens"]) for _ in range(400)]) / count
    moved = np.mean([(swap(whole, random)["tokens"] != whole["tokens"]).sum() for _ in range(400)]) / count
    assert gone == pytest.approx(share, abs=0.02) and moved == pytest.approx(share, abs=0.02)


def test_read_only_rows_and_rows_without_token_types_are_fine():
    tokens = row([1, 2, 3, 4])["tokens"]
    tokens.flags.writeable = False
    for kind in (RandomDeletion, RandomSwap):
        changed = kind(share=0.9).protect([CLS, SEP])({"tokens": tokens}, np.random.default_rng(0))
        assert set(changed) == {"tokens"} and changed["tokens"].dtype == np.int32


def test_they_are_chosen_by_kind_and_learn_the_special_tokens(minilm):
    chosen = TypeAdapter(tuple[Annotated[Augment, OneOf(AUGMENTS)], ...]).validate_python(
        ["random_swap", {"kind": "random_deletion", "share": 0.2}]
    )
    ready = host_part(chosen, Processor(tokenizer=minilm))
    assert ready[1].share == 0.2
    tokens = minilm.encode(["a [MASK] day"], max_tokens=9).tokens[0]
    for _ in range(20):
        changed = ready[1]({"tokens": tokens}, np.random.default_rng(1))["tokens"]
        assert {101, 102, 103} <= set(changed.tolist())
    with pytest.raises(ConfigError, match="RandomSwap changes texts"):
        host_part(chosen, Processor())
    with pytest.raises(RuntimeError, match="before fit"):
        RandomSwap()({"tokens": tokens}, np.random.default_rng(0))
    for share in (0, 1, -0.1):
        with pytest.raises(ValidationError):
            RandomSwap(share=share)
