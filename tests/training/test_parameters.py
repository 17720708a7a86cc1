"""What trains, with what rate and decay: read from patterns and paths, shown as a table, checked against arithmetic by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny

from jaxtune.core.errors import ConfigError
from jaxtune.training.parameters import Row, choose, groups, rate_scales

SIZES = {
    "embeddings.token.embedding": (10, 4),
    "layers.0-3.q.kernel": (4, 4, 4),
    "layers.0-3.q.bias": (4, 4),
    "layers.0-3.norm.scale": (4, 4),
    "head.out.kernel": (4, 2),
    "head.out.bias": (2,),
}
SHAPES = {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in SIZES.items()}
TOTAL = 40 + 64 + 16 + 16 + 8 + 2


def test_the_table_of_a_phase() -> None:
    found = choose(SHAPES, ["head.*", "layers.{2-3}.*", "!*.norm.*"])
    assert found.cuts == (2,)
    assert found.names == {"head.out.kernel", "head.out.bias", *(f"layers.{i}.q.{part}" for i in (2, 3) for part in ("kernel", "bias"))}
    assert found.table == (
        Row("head.*", 2, 10, 10 / TOTAL, True),
        Row("layers.{2-3}.*", 4, 40, 40 / TOTAL, True),
        Row("(frozen)", 9, 96, 96 / TOTAL, False),
    )


def test_each_parameter_is_counted_once() -> None:
    table = choose(SHAPES, ["*", "head.*", "layers.*"]).table
    assert [(row.pattern, row.arrays, row.parameters) for row in table] == [("*", 15, TOTAL), ("head.*", 0, 0), ("layers.*", 0, 0)]
    assert table[0].share == 1.0


def test_trains_by_stored_path() -> None:
    cut = {key.replace("0-3", part): shape for key, shape in SHAPES.items() for part in ("0-1", "2-3")}
    found = choose(SHAPES, ["layers.{2-3}.q.*"])
    assert {key for key in cut if found.trains(key)} == {"layers.2-3.q.kernel", "layers.2-3.q.bias"}
    with pytest.raises(AssertionError, match="layers that train and layers that do not"):
        found.trains("layers.0-3.q.kernel")


def test_cuts_only_where_training_changes() -> None:
    assert choose(SHAPES, ["*"]).cuts == ()
    assert choose(SHAPES, ["head.*"]).cuts == ()
    assert choose(SHAPES, ["*.bias"]).cuts == (), "every layer alike"
    assert choose(SHAPES, ["layers.1.*", "layers.{2-3}.q.*"]).cuts == (1, 2)


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (["heads.*"], 'phases.train: pattern "heads.*" matches no parameter; did you mean "head.*"?'),
        (["layers.{4-5}.*"], 'pattern "layers.{4-5}.*" matches no parameter'),
        (["head.*", "!*"], "head.*, !* leaves no parameter to train; expected at least one"),
        (["!head.*"], "leaves no parameter to train"),
    ],
)
def test_nothing_to_train(patterns: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(SHAPES, patterns)
    assert text in str(caught.value)


def test_groups_by_path_never_by_shape() -> None:
    found = groups(list(SIZES), tiny.adamw())
    assert found.decayed == {"embeddings.token.embedding", "layers.0-3.q.kernel", "head.out.kernel"}
    assert found.stacked == {"layers.0-3.q.kernel", "layers.0-3.q.bias", "layers.0-3.norm.scale"}
    other = groups(list(SIZES), tiny.adamw(no_decay=("layers.*", "!*.scale")))
    assert other.decayed == {"embeddings.token.embedding", "head.out.kernel", "head.out.bias", "layers.0-3.norm.scale"}


def depth(name: str) -> int:
    return int(name.split(".")[1]) + 1 if name.startswith("layers.") else 0 if name.startswith("embeddings") else 5


def test_the_usual_names_need_not_occur_even_when_written_out() -> None:
    """A resolved experiment names `*.scale`, and a phase that trains a head alone has none; a name of one's own must occur."""
    written = tiny.adamw(no_decay=("*.bias", "*.scale"))
    assert groups(["head.kernel", "head.bias"], written).decayed == {"head.kernel"}
    with pytest.raises(ConfigError, match='no_decay: pattern "norm'):
        groups(["head.kernel"], tiny.adamw(no_decay=("norm.*",)))


def test_rate_scales() -> None:
    found = rate_scales(list(SIZES), tiny.adamw(layer_decay=0.5, head_rate=3.0), depth, 4)
    assert found["head.out.kernel"] == found["head.out.bias"] == 3.0
    assert found["embeddings.token.embedding"] == 0.5**5
    np.testing.assert_array_equal(found["layers.0-3.q.kernel"], np.float32([0.5**4, 0.5**3, 0.5**2, 0.5]))
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    cut = rate_scales(["layers.2-3.q.kernel"], tiny.adamw(layer_decay=0.5), depth, 4)
    np.testing.assert_array_equal(cut["layers.2-3.q.kernel"], np.float32([0.25, 0.5]))


def test_without_layer_decay_all_scales_are_one() -> None:
    for key, value in rate_scales(list(SIZES), tiny.adamw(), depth, 4).items():
        assert np.all(value == 1.0) and value.shape == ((4,) if key.startswith("layers") else ())
