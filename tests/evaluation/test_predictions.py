"""The predictions file: one row an example, joined with its record by number, for every kind of problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxtune.evaluation.evaluate import Predictions, gather
from jaxtune.evaluation.predictions import predictions_table, write_predictions

NAMES = ("calm", "glad", "sad")
PROBABILITIES = np.float32([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
FOUND = Predictions(np.int64([4, 9]), np.log(PROBABILITIES), PROBABILITIES, np.float32([0.36, 1.2]))
TRUTH = [f"record {i}" for i in range(12)]


def test_one_class_each(tmp_path: Path) -> None:
    path = tmp_path / "new" / "test.parquet"
    write_predictions(path, FOUND, NAMES, "single_label", TRUTH)
    table = pq.read_table(path).to_pydict()
    assert table["row"] == [4, 9] and table["label"] == ["record 4", "record 9"]
    assert table["predicted"] == ["calm", "sad"]
    np.testing.assert_allclose(table["confidence"], [0.7, 0.6], rtol=1e-6)
    np.testing.assert_allclose(table["loss"], [0.36, 1.2], rtol=1e-6)
    np.testing.assert_allclose(np.column_stack([table[f"probability {name}"] for name in NAMES]), PROBABILITIES)
    assert [p.name for p in path.parent.iterdir()] == ["test.parquet"], "no half-written file is left"


def test_several_classes() -> None:
    high = Predictions(FOUND.ids, FOUND.logits, np.float32([[0.9, 0.6, 0.1], [0.1, 0.2, 0.5]]), FOUND.loss)
    table = predictions_table(high, NAMES, "multi_label")
    assert table["predicted"] == [["calm", "glad"], []]
    assert "confidence" not in table


def test_a_number(tmp_path: Path) -> None:
    found = Predictions(np.int64([0, 1]), np.float32([[1.5], [-2]]), np.float32([[1.5], [-2]]), np.float32([0.25, 1]))
    path = tmp_path / "test.parquet"
    write_predictions(path, found, (), "regression", [1.0, -1.0])
    assert pq.read_table(path).to_pydict() == {"row": [0, 1], "predicted": [1.5, -2.0], "label": [1.0, -1.0], "loss": [0.25, 1.0]}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    write_predictions(path, FOUND, NAMES, "single_label", TRUTH)
    before = path.read_bytes()
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError, IndexError)):
        write_predictions(path, FOUND, NAMES, "single_label", [*TRUTH[:9], object()])
    assert path.read_bytes() == before


def test_batches_are_joined_without_padding_and_in_order() -> None:
    def part(ids: list[int]) -> dict[str, np.ndarray]:
        numbers = np.float32(ids)
        return {"id": np.int32(ids), "logits": numbers[:, None], "probabilities": 10 * numbers[:, None], "loss": 100 * numbers}

    found = gather([part([7, 2]), part([5, -1]), part([0, -1])])
    assert found.ids.tolist() == [0, 2, 5, 7]
    assert found.logits[:, 0].tolist() == [0, 2, 5, 7] and found.loss.tolist() == [0, 200, 500, 700]
    assert found.probabilities[:, 0].tolist() == [0, 20, 50, 70]
