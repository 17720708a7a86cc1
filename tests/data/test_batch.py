from __future__ import annotations

import numpy as np
import pytest

from jaxtune.core.errors import DataError
from jaxtune.data.batch import FIELDS, collate, complete, spec


def text_row(number: int, length: int, **more) -> dict:
    return {"tokens": np.arange(1, length + 1, dtype=np.int32), "label": number % 3, "example_id": number, **more}


def test_collate_pads_rows_and_tokens():
    batch = collate([text_row(7, 3), None, text_row(9, 4)], 4)
    np.testing.assert_array_equal(batch["tokens"], [[1, 2, 3, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(batch["loss_weight"], [1, 0, 1])
    np.testing.assert_array_equal(batch["example_id"], [7, -1, 9])
    np.testing.assert_array_equal(batch["label"], [1, 0, 0])


def test_collated_batches_are_what_spec_says():
    image = np.full((2, 3, 1), 9, np.uint8)
    cases = [
        ([text_row(0, 2, token_types=np.array([0, 1])), None], 8, {}),
        ([{"image": image, "label": 1, "example_id": 0}, None], None, {"image": (2, 3, 1)}),
        (
            [{"image": image / 255.0, "target": [0.5, 1.0], "example_id": 0}],
            None,
            {"image": (2, 3, 1), "image_dtype": "float32", "classes": 2},
        ),
    ]
    for rows, width, sizes in cases:
        batch = collate(rows, width)
        expected = spec(rows[0], len(rows), width, **sizes)
        assert list(batch) == list(expected)
        assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {n: (s.shape, s.dtype) for n, s in expected.items()}


def test_all_padding_takes_its_form_from_the_template():
    batch = collate([None, None], 4, text_row(3, 2))
    assert batch["tokens"].shape == (2, 4) and not batch["segment_ids"].any() and not batch["loss_weight"].any()
    assert (batch["example_id"] == -1).all()
    with pytest.raises(ValueError, match="template"):
        collate([None], 4)


def test_own_loss_weights_and_segments_are_kept():
    batch = collate([text_row(0, 2, loss_weight=0.25, segment_ids=np.array([1, 2])), None], 3)
    np.testing.assert_array_equal(batch["loss_weight"], np.float32([0.25, 0]))
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 2, 0], [0, 0, 0]])


def test_wrong_rows_are_named():
    with pytest.raises(DataError, match=r'row 12: "tokens" has the shape \(5,\), expected at most 4'):
        collate([text_row(12, 5)], 4)
    with pytest.raises(DataError, match=r"row 1: .* expected the shape \(2,\)"):
        collate([{"target": [1.0, 2.0], "example_id": 0}, {"target": [1.0], "example_id": 1}], None)


def test_spec_asks_for_what_it_needs():
    with pytest.raises(ValueError, match=r'"tokens".*width'):
        spec(["tokens"], 4)
    with pytest.raises(KeyError):
        complete(["token"])
    assert complete(["label", "tokens"]) == ("tokens", "segment_ids", "label", "loss_weight", "example_id")
    assert all(field.meaning for field in FIELDS.values())
