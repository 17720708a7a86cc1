from __future__ import annotations

import pickle

import numpy as np
import pytest

from jaxtune.core.errors import ConfigError
from jaxtune.data.examples import Examples, Ragged

ROWS = [[5], [1, 2, 3], [], [7, 8]]


class Squares:
    """A lazy column."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((2, 2, 1), index * index, np.uint8)


def examples() -> Examples:
    return Examples({"tokens": Ragged.of(ROWS), "label": np.arange(4), "image": Squares()}, facts={"full_length": np.array([1, 9, 0, 2])})


def test_ragged_rows_come_back():
    ragged = Ragged.of(ROWS)
    assert [row.tolist() for row in (ragged[i] for i in range(4))] == ROWS
    assert ragged.lengths.tolist() == [1, 3, 0, 2] and ragged.flat.dtype == np.int32
    assert len(Ragged.of([])) == 0
    for wrong in (-1, 4):
        with pytest.raises(IndexError):
            ragged[wrong]


def test_subset_is_a_view_that_keeps_row_numbers():
    whole = examples()
    part = whole.subset([3, 1]).subset(np.array([False, True]))
    assert len(part) == 1 and part.lengths.tolist() == [3]
    row = part.row(0)
    assert row["example_id"] == 1 and row["tokens"].tolist() == [1, 2, 3] and row["image"][0, 0, 0] == 1
    assert part.column("full_length").tolist() == [9] and part.column("label").tolist() == [1]
    assert part.columns is whole.columns
    with pytest.raises(IndexError):
        whole.subset([4])
    with pytest.raises(ValueError, match="mask"):
        whole.subset(np.array([True]))


def test_memory_mapped_columns_are_pickled_by_path(tmp_path):
    ragged, many = Ragged.of([list(range(1000))] * 50), np.arange(50)
    for name, array in {"flat": ragged.flat, "offsets": ragged.offsets, "label": many}.items():
        np.save(tmp_path / f"{name}.npy", array)
    flat, offsets, label = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("flat", "offsets", "label"))
    part = Examples({"tokens": Ragged(flat, offsets), "label": label}).subset([49, 7])
    data = pickle.dumps(part)
    assert len(data) < 3000
    again = pickle.loads(data)
    assert isinstance(again.columns["tokens"].flat, np.memmap)
    assert again.row(1)["example_id"] == 7 and again.row(1)["label"] == 7
    np.testing.assert_array_equal(again.row(0)["tokens"], np.arange(1000))
    sliced = Ragged(flat[1000:2000], np.array([0, 1000]))  # a slice of a map: NumPy no longer knows where it begins
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sliced))[0], sliced[0])


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        Examples({"token": Ragged.of(ROWS), "label": np.arange(3)})
    assert 'no batch holds a column "token"; did you mean "tokens"?' in str(error.value)
    assert "token 4, label 3" in str(error.value)
    with pytest.raises(ConfigError, match="3 lengths for 4 rows"):
        Examples({"label": np.arange(4)}, np.arange(3))
    with pytest.raises(TypeError, match="Squares"):
        examples().column("image")
