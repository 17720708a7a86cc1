from __future__ import annotations

import logging
import os
import threading
import time

import numpy as np
import pytest

from jaxtune.core.errors import DiskError
from jaxtune.data import cache
from jaxtune.data.examples import Examples, Ragged

KEY = cache.fingerprint({"source": "abc", "max_tokens": 8})


def build() -> Examples:
    return Examples(
        {"tokens": Ragged.of([[1, 2], [3], []]), "label": np.array([0, 1, 2], np.int32)},
        facts={"kept": np.array([True, True, False])},
    )


def equal(one: Examples, other: Examples) -> bool:
    rows = [(one.row(i), other.row(i)) for i in range(len(one))]
    same = all(np.array_equal(a[name], b[name]) for a, b in rows for name in a)
    return len(one) == len(other) and same and np.array_equal(one.lengths, other.lengths) and set(one.facts) == set(other.facts)


def refuse() -> Examples:
    raise AssertionError("built again")


def test_the_second_time_is_a_hit_and_memory_mapped(tmp_path):
    first, hit = cache.load_or_build(tmp_path / "deep" / "cache", KEY, build)
    assert not hit and equal(first, build())
    again, hit = cache.load_or_build(tmp_path / "deep" / "cache", KEY, refuse)
    assert hit and equal(again, build())
    assert isinstance(again.columns["tokens"].flat, np.memmap) and isinstance(again.columns["label"], np.memmap)
    assert again.facts["kept"].tolist() == [True, True, False]
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == [KEY]


def test_no_folder_stores_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, hit = cache.load_or_build(None, KEY, build)
    assert not hit and equal(found, build()) and not list(tmp_path.iterdir())


def test_an_empty_column_is_kept(tmp_path):
    empty = Examples({"tokens": Ragged.of([[], []])})
    assert cache.load_or_build(tmp_path, KEY, lambda: empty)[0].lengths.tolist() == [0, 0]
    assert cache.load_or_build(tmp_path, KEY, refuse)[1]


def test_fingerprint_sees_every_part_but_not_their_order():
    assert cache.fingerprint({"max_tokens": 8, "source": "abc"}) == KEY
    assert len({KEY, cache.fingerprint({"source": "abc", "max_tokens": 9}), cache.fingerprint({"source": "abc", "max_tokens": "8"})}) == 3


def damage_bit(entry):
    path = entry / "tokens.flat.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_length(entry):
    path = entry / "label.npy"
    path.write_bytes(path.read_bytes()[:-2])


def damage_missing(entry):
    (entry / "lengths.npy").unlink()


def damage_manifest(entry):
    (entry / "manifest.json").write_text('{"files": ')


def damage_no_manifest(entry):
    (entry / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [damage_bit, damage_length, damage_missing, damage_manifest, damage_no_manifest])
def test_a_damaged_entry_is_built_again_and_said(tmp_path, damage, caplog):
    cache.load_or_build(tmp_path, KEY, build)
    damage(tmp_path / KEY)
    with caplog.at_level(logging.WARNING):
        again, hit = cache.load_or_build(tmp_path, KEY, build)
    assert not hit and equal(again, build())
    assert "damaged" in caplog.text and KEY in caplog.text
    assert cache.load_or_build(tmp_path, KEY, refuse)[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_two_that_build_the_same_entry_both_get_it(tmp_path):
    barrier = threading.Barrier(4)
    found = []

    def together() -> Examples:
        barrier.wait()
        return build()

    threads = [threading.Thread(target=lambda: found.append(cache.load_or_build(tmp_path, KEY, together))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(equal(examples, build()) for examples, _ in found)
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_a_failed_build_leaves_nothing(tmp_path):
    with pytest.raises(AssertionError):
        cache.load_or_build(tmp_path, KEY, refuse)
    with pytest.raises(TypeError, match='"image" is a list'):
        cache.load_or_build(tmp_path, KEY, lambda: Examples({"image": [np.zeros((2, 2, 1))]}))
    with pytest.raises(ValueError, match="view"):
        cache.load_or_build(tmp_path, KEY, lambda: build().subset([0]))
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    for name, age in ((".building-old", 100_000), (".building-new", 10)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    cache.load_or_build(tmp_path, KEY, build)
    assert {path.name for path in tmp_path.iterdir()} == {".building-new", KEY}


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="JAXTUNE_CACHE"):
        cache.load_or_build(tmp_path / "file", KEY, build)
