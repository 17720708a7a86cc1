"""facts.json: what is counted of the data before the first step, by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxtune.data.examples import Examples, Ragged
from jaxtune.data.facts import recorded
from jaxtune.data.pack import PackedPlan
from jaxtune.data.plan import Plan

FULL = np.array([4, 4, 30, 8, 20, 4])  # tokens before cutting at 16
KEYS = ["a", "b", "c", "d", "a", "e"]


def facts_of(widths: tuple[int, ...] = (16,), kind: type[Plan] = Plan) -> dict:
    examples = Examples({"tokens": Ragged.of([np.ones(min(n, 16)) for n in FULL])}, facts={"full_length": FULL})
    splits = {
        "train": examples.subset(np.array([0, 1, 2, 3])),
        "validation": examples.subset(np.array([4])),
        "test": examples.subset(np.array([5])),
    }
    plan = kind(rows=4, lengths=splits["train"].lengths, widths=widths, batch_size=2)
    split = SimpleNamespace(repeated=1, copies=2, left_out=(), conflicts=())
    known = {"rows": {"train": 4, "validation": 1, "test": 1}, "dropped_by_transforms": 0, "labels": None, "encoding": {}, "split": split}
    return recorded(known, splits, KEYS, plan, phases=[(20, 2)], limit=16, possible=64)


def test_lengths_copies_and_padding() -> None:
    found = facts_of()
    assert found["copies"]["seen_in_training"] == {"validation": 1, "test": 0}
    assert found["tokens"]["rows_cut"] == 0.25 and found["tokens"]["tokens_cut"] == pytest.approx(14 / 46)
    assert found["tokens"]["quantiles"] == {"50%": 8, "95%": 30, "100%": 30}
    assert found["padding"]["share"] == pytest.approx(1 - 32 / 64)
    # the two longest rows (16 and 8 tokens) in a batch of 16, the two of 4 in one of 8
    assert found["padding"]["auto_widths"] == [8, 16] and found["padding"]["auto_share"] == pytest.approx(1 - 32 / 48)
    assert found["phases"] == [{"steps": 20, "epoch_steps": 2}] and found["batch_rows"] == 2
    assert json.loads(json.dumps(found)) == found


def test_the_automatic_widths_are_not_worse_than_themselves() -> None:
    found = facts_of((8, 16))
    assert found["padding"]["share"] == pytest.approx(found["padding"]["auto_share"])


def test_packed_rows_are_compared_with_packed_rows() -> None:
    """16 + 8 + 4 + 4 tokens fill two rows of 16: one batch, and no width does better."""
    found = facts_of((16,), PackedPlan)
    assert found["padding"]["auto_widths"] == [16] and found["padding"]["share"] == found["padding"]["auto_share"] == 0.0


def test_images_have_neither_tokens_nor_padding() -> None:
    examples = Examples({"label": np.arange(4)})
    split = SimpleNamespace(repeated=0, copies=0, left_out=(), conflicts=())
    known = {"rows": {"train": 4}, "dropped_by_transforms": 0, "labels": None, "encoding": {}, "split": split}
    found = recorded(known, {"train": examples}, ["a"] * 4, Plan(rows=4, batch_size=2), phases=[(2, 2)], limit=None, possible=None)
    assert found["tokens"] is None and found["padding"] is None
