"""The shallow tree gives the predictions of scikit-learn's regression tree on the same columns (words as one column a value)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from jaxtune.evaluation.tree import Condition, Node, grow, nodes, told

WORDS = ("calm", "glad", "sad", "wild")


def table(seed: int, n: int = 600) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(seed)
    columns = {
        "length": random.integers(3, 300, n).astype(np.float64),
        "score": random.normal(size=n),
        "mood": np.array(WORDS, object)[random.integers(0, len(WORDS), n)],
    }
    chance = 0.05 + 0.5 * ((columns["length"] > 200) & (columns["mood"] == "sad")) + 0.2 * (columns["score"] < -1)
    return columns, (random.random(n) < chance).astype(np.float64)


def predictions(tree: Node, columns: dict[str, np.ndarray]) -> np.ndarray:
    out = np.full(len(columns["length"]), np.nan)
    for node in [tree, *nodes(tree)]:
        if not node.parts:
            inside = np.ones(len(out), bool)
            for condition in node.conditions:
                inside &= condition.holds(columns)
            assert inside.sum() == node.size and np.isnan(out[inside]).all()
            out[inside] = node.mean
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("depth", "least"), [(1, 20), (2, 20), (3, 30), (3, 5)])
def test_the_tree_of_scikit_learn(seed: int, depth: int, least: int) -> None:
    columns, error = table(seed)
    wide = np.column_stack([columns["length"], columns["score"], *(columns["mood"] == word for word in WORDS)])
    reference = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=least, min_samples_split=2 * least, random_state=0).fit(wide, error)
    found = predictions(grow(columns, error, depth=depth, least=least), columns)
    truth = reference.predict(wide)
    assert ((found - error) ** 2).sum() == pytest.approx(((truth - error) ** 2).sum(), rel=1e-9)
    if depth < 3:  # deeper, equal gains may be broken otherwise
        np.testing.assert_allclose(found, truth, atol=1e-12)


def test_numbers_as_errors_and_unknown_numbers() -> None:
    random = np.random.default_rng(0)
    length = random.integers(0, 100, 300).astype(np.float64)
    error = np.where(length > 60, 5.0, 1.0) + random.normal(0, 0.1, 300)
    length[:10] = np.nan
    tree = grow({"length": length}, error, depth=1, least=10)
    (low, high) = tree.parts
    assert low.conditions[0] == Condition("length", "<=", 60.5) and low.mean == pytest.approx(1.0, abs=0.05)
    assert low.size + high.size == 300 and high.size >= (length > 60).sum() + 10, "unknown ones are on the other side"


def test_parts_that_differ_from_the_part_around_them() -> None:
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=2000), "b": random.normal(size=2000)}
    error = ((random.random(2000) < 0.1) | (columns["a"] > 1)).astype(np.float64)
    tree = grow(columns, error, depth=3, least=50)
    clear = nodes(tree, 4.0)
    assert len(nodes(tree)) > 6 and all("a" in told(node.conditions) for node in clear)
    assert (clear[1].conditions[0].relation, clear[1].mean) == (">", 1.0)


def test_nothing_to_find() -> None:
    columns, _ = table(0)
    assert grow(columns, np.zeros(600)).parts == () and grow(columns, np.ones(600)).parts == ()
    assert grow({name: values[:30] for name, values in columns.items()}, np.arange(30.0), least=20).parts == ()


def test_nodes_in_words() -> None:
    conditions = (
        Condition("length", ">", 10.0), Condition("mood", "is not", "sad"), Condition("length", "<=", 90.5), Condition("length", ">", 20.0),
    )  # fmt: skip
    assert told(conditions) == "length above 20 and at most 90.5, mood not “sad”"
    assert told((Condition("mood", "is not", "sad"), Condition("mood", "is", "calm"))) == "mood “calm”"
