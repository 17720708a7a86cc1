"""Sources: records, order, fingerprints, pickles, and the message for each way in which files can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError, DataError, JaxtuneError
from jaxtune.data import SOURCES
from jaxtune.data.sources.base import Source
from jaxtune.data.sources.csv_file import CsvFile
from jaxtune.data.sources.image_folder import ImageFolder
from jaxtune.data.sources.in_memory import InMemory
from jaxtune.data.sources.json_lines import JsonLines
from jaxtune.data.sources.parquet import Parquet
from jaxtune.data.sources.text_folder import TextFolder

ROWS = [{"text": "one, two", "label": "a"}, {"text": 'a "quoted"\nsecond line', "label": "b"}, {"text": "£ 3", "label": "a"}]


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def text_folder(root: Path) -> Path:
    for name, text in {"b/2.txt": "two", "b/10.txt": "ten", "a/1.txt": "one", "a/deep/3.txt": "three"}.items():
        put(root / name, text)
    for name in ("a/.hidden.txt", ".git/x.txt", "__pycache__/y.txt", "a/notes.md", "README.txt"):
        put(root / name, "not an example")
    return root


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (5, 4), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(size[0] * size[1] * 4, dtype=np.uint8).reshape(size[1], size[0], 4)
    image = Image.fromarray(values[..., : {"RGB": 3, "L": 1, "RGBA": 4}[mode]].squeeze(), mode)
    image.save(path, **options)
    return path


def written(root: Path) -> dict[str, Source]:
    """ROWS as every kind of tabular file."""
    import pyarrow
    import pyarrow.parquet

    put(root / "rows.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n\n")
    quoted = (",".join('"' + row[name].replace('"', '""') + '"' for name in ("text", "label")) for row in ROWS)
    put(root / "rows.csv", "\ufefftext,label\r\n" + "\r\n".join(quoted) + "\r\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), root / "rows.parquet")
    return {
        "json_lines": JsonLines(path=str(root / "rows.jsonl")),
        "csv": CsvFile(path=str(root / "rows.csv")),
        "parquet": Parquet(path=str(root / "rows.parquet")),
        "in_memory": InMemory(records=tuple(ROWS)),
    }


def test_every_kind_gives_the_same_records(tmp_path: Path) -> None:
    for kind, source in written(tmp_path).items():
        records = source.open()
        assert len(records) == 3 and records.fields == ("text", "label"), kind
        assert [records[row] for row in range(3)] == ROWS, kind
        assert [records[row] for row in (2, 0, 1)] == [ROWS[2], ROWS[0], ROWS[1]], kind
        assert list(records) == ROWS and records[np.int64(1)] == ROWS[1], kind
        with pytest.raises(IndexError):
            records[3]
        with pytest.raises(IndexError):
            records[-1]


def test_records_pickle_before_and_after_reading(tmp_path: Path) -> None:
    picture(tmp_path / "images/a/1.png")
    sources = [
        *written(tmp_path).values(),
        TextFolder(path=str(text_folder(tmp_path / "texts"))),
        ImageFolder(path=str(tmp_path / "images")),
    ]
    for source in sources:
        records = source.open()
        early = pickle.loads(pickle.dumps(records))
        first = records[0]
        late = pickle.loads(pickle.dumps(records))
        for copy in (early, late):
            assert len(copy) == len(records) and str(copy[0]) == str(first), source


def test_every_kind_survives_yaml_values() -> None:
    adapter = TypeAdapter(Annotated[Source, OneOf(SOURCES)])
    given = {
        "text_folder": {"path": "x", "encoding": ["utf-8", "cp1252"]},
        "image_folder": {"path": {"train": "x", "test": "y"}, "channels": 1},
        "json_lines": {"path": "x", "errors": "replace"},
        "csv": {"path": "x", "delimiter": ";", "numbers": ["n"]},
        "parquet": {"path": "x", "columns": ["a"]},
        "in_memory": {"records": [{"text": "a", "label": 1}]},
        "tfds": {"path": "x", "split": {"train": "train[:5%]", "test": "test"}},
    }
    assert given.keys() == SOURCES.keys()
    for kind, values in given.items():
        source = adapter.validate_python({"kind": kind, **values})
        dumped = adapter.dump_python(source, mode="json")
        assert dumped["kind"] == kind and adapter.validate_python(json.loads(json.dumps(dumped))) == source
        assert hash(source) == hash(adapter.validate_python(dumped))


def test_text_folder_order_names_and_skipped_files(tmp_path: Path) -> None:
    records = TextFolder(path=str(text_folder(tmp_path))).open()
    assert [record["path"] for record in records] == ["a/1.txt", "a/deep/3.txt", "b/10.txt", "b/2.txt"]
    assert records[1] == {"text": "three", "label": "a", "path": "a/deep/3.txt"}
    assert records.fields == ("text", "label", "path") and records.label_names == {"label": ("a", "b")}


def test_text_folder_encodings(tmp_path: Path) -> None:
    file = put(tmp_path / "a/1.txt", "cost £5\r\nmore".encode("cp1252"))
    put(tmp_path / "a/2.txt", "\ufeffcost £5".encode())
    with pytest.raises(DataError) as error:
        list(TextFolder(path=str(tmp_path)).open())
    assert f"{file}: byte 0xa3 at position 5 is not utf-8" in str(error.value)
    assert "`encoding: [utf-8, cp1252]`" in str(error.value)
    both = TextFolder(path=str(tmp_path), encoding=("utf-8", "cp1252")).open()
    assert [record["text"] for record in both] == ["cost £5\nmore", "cost £5"]
    replaced = TextFolder(path=str(tmp_path), errors="replace").open()
    assert replaced[0]["text"] == "cost \ufffd5\nmore"
    with pytest.raises(ValidationError, match='unknown encoding "utf8x"; did you mean "utf-8"'):
        TextFolder(path="x", encoding="utf8x")
    with pytest.raises(ValidationError, match="cannot be read line by line"):
        CsvFile(path="x", encoding="utf-16")


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(JaxtuneError, match="nowhere"):
        TextFolder(path=str(tmp_path / "nowhere")).open()
    put(tmp_path / "flat/1.txt", "x")
    with pytest.raises(DataError, match=r"expected a folder per label with .* found 1 files and no folders"):
        TextFolder(path=str(tmp_path / "flat")).open()
    put(tmp_path / "wrong/a/1.csv", "x")
    (tmp_path / "wrong/b").mkdir()
    with pytest.raises(DataError) as error:
        TextFolder(path=str(tmp_path / "wrong")).open()
    assert "a: expected *.txt files, found 1 .csv" in str(error.value) and "b: expected *.txt files, found no files" in str(error.value)


def test_path_per_split_adds_the_field(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}')
    put(tmp_path / "test.jsonl", '{"text": "c", "label": "x"}')
    records = JsonLines(path={"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}).open()
    assert records.fields == ("text", "label", "split")
    assert [(record["text"], record["split"]) for record in records] == [("a", "train"), ("b", "train"), ("c", "test")]
    put(tmp_path / "test.jsonl", '{"text": "c"}')
    with pytest.raises(DataError, match="test has the fields text, but train has text, label \\(different: label\\)"):
        JsonLines(path={"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}).open()
    with pytest.raises(ValidationError):
        JsonLines(path={"training": "x"})


def test_label_names_of_all_splits_are_joined(tmp_path: Path) -> None:
    put(tmp_path / "one/b/1.txt", "x"), put(tmp_path / "two/a/1.txt", "y"), put(tmp_path / "two/b/1.txt", "y")
    records = TextFolder(path={"train": str(tmp_path / "one"), "test": str(tmp_path / "two")}).open()
    assert records.label_names == {"label": ("b", "a")}


def test_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    for name in ("part-1", "part-0"):
        put(tmp_path / f"{name}.jsonl", json.dumps({"text": name}))
    put(tmp_path / "ignored.txt", "x")
    assert [record["text"] for record in JsonLines(path=str(tmp_path)).open()] == ["part-0", "part-1"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no files in it"):
        JsonLines(path=str(tmp_path / "empty")).open()


def test_json_lines_names_every_bad_line(tmp_path: Path) -> None:
    file = put(tmp_path / "x.jsonl", '{"text": "fine"}\n{"text": \n[1, 2]\n\n"just \x1b[31mtext"\n')
    with pytest.raises(DataError) as error:
        JsonLines(path=str(file)).open()
    message = str(error.value)
    assert f"{file}, line 2: Expecting value" in message and "line 3: found a list" in message and "line 5: " in message
    assert "line 4" not in message and "\x1b" not in message
    put(file, "nonsense\n" * 13)
    with pytest.raises(DataError, match=r"line 10: .*\nand 3 more lines;"):
        JsonLines(path=str(file)).open()
    put(file, '[{"text": "a"},\n {"text": "b"}]')
    with pytest.raises(DataError, match="jq -c"):
        JsonLines(path=str(file)).open()
    put(file, "\n\n")
    with pytest.raises(DataError, match="found no lines"):
        JsonLines(path=str(file)).open()


def test_json_lines_fills_missing_keys(tmp_path: Path) -> None:
    file = put(tmp_path / "x.jsonl", '{"a": 1}\n{"b": [1.5, "x"], "a": null}')
    assert list(JsonLines(path=str(file)).open()) == [{"a": 1, "b": None}, {"a": None, "b": [1.5, "x"]}]


def test_csv_options(tmp_path: Path) -> None:
    file = put(tmp_path / "x.tsv", "good\t1.5\nbad\t\n")
    records = CsvFile(path=str(file), delimiter="\t", columns=("text", "score"), numbers=("score",)).open()
    assert list(records) == [{"text": "good", "score": 1.5}, {"text": "bad", "score": None}]
    with pytest.raises(ConfigError, match='no column "scor"; did you mean "score"'):
        CsvFile(path=str(put(tmp_path / "y.csv", "text,score\na,1\n")), numbers=("scor",)).open()
    with pytest.raises(ValidationError, match="numbers names scor"):
        CsvFile(path="x", columns=("text", "score"), numbers=("scor",))


def test_csv_long_values_and_odd_line_ends(tmp_path: Path) -> None:
    long = "word " * 60_000
    file = put(tmp_path / "x.csv", f'text,label\n"{long}",a\nnel\x85 and\u2028 vt\x0b,b\n')
    records = CsvFile(path=str(file)).open()
    assert records[0]["text"] == long and records[1] == {"text": "nel\x85 and\u2028 vt\x0b", "label": "b"}


def test_csv_errors(tmp_path: Path) -> None:
    def opened(content: str | bytes, **options: object) -> None:
        CsvFile.model_validate({"path": str(put(tmp_path / "x.csv", content)), **options}).open()

    with pytest.raises(DataError) as error:
        opened('a,b\n1,2\n3\n"x\ny",2\n1,2,3\n')
    assert "line 3: expected 2 values (a, b), found 1" in str(error.value) and "line 6: expected 2 values (a, b), found 3" in str(
        error.value
    )
    with pytest.raises(DataError, match=r"line 2: .*check the quotes"):
        opened('a,b\n"1,2\n')
    with pytest.raises(DataError, match='line 3: n is not a number: "many"'):
        opened("n,b\n1,2\nmany,3\n", numbers=["n"])
    with pytest.raises(DataError, match="b more than once"):
        opened("a,b,b\n1,2,3\n")
    with pytest.raises(DataError, match="an empty name"):
        opened("a,,b\n1,2,3\n")
    with pytest.raises(ConfigError, match="set `delimiter: ';'`"):
        opened("a;b\n1;2\n")
    with pytest.raises(DataError, match="found only a header line"):
        opened("a,b\n")
    with pytest.raises(DataError, match="line 2: byte 0xa3 at position 2 is not utf-8"):
        opened(b"a,b\n1,\xa3\n")


def test_parquet_columns_and_errors(tmp_path: Path) -> None:
    written(tmp_path)
    file = tmp_path / "rows.parquet"
    assert Parquet(path=str(file), columns=("label",)).open()[1] == {"label": "b"}
    with pytest.raises(ConfigError, match='no column "lable"; did you mean "label"\\? \\(columns: text, label\\)'):
        Parquet(path=str(file), columns=("lable",)).open()
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Parquet(path=str(file)).open()


def test_images_are_upright_and_in_one_form(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    picture(tmp_path / "a/1.jpg", exif=turned)
    picture(tmp_path / "a/2.PNG", "L")
    picture(tmp_path / "b/3.png", "RGBA")
    picture(tmp_path / "b/4.webp")
    picture(tmp_path / "b/5.bmp")
    Image.new("P", (3, 2)).save(tmp_path / "b/6.png", transparency=b"\x00\x01")
    records = ImageFolder(path=str(tmp_path)).open()
    images = [record["image"] for record in records]
    assert [image.shape for image in images] == [(5, 4, 3), (4, 5, 3), (4, 5, 3), (4, 5, 3), (4, 5, 3), (2, 3, 3)]
    assert all(image.dtype == np.uint8 for image in images)
    assert (images[4] == np.arange(80, dtype=np.uint8).reshape(4, 5, 4)[..., :3]).all()
    assert records[2]["label"] == "b" and records.label_names == {"label": ("a", "b")}
    grey = ImageFolder(path=str(tmp_path), channels=1).open()[1]["image"]
    assert grey.shape == (4, 5, 1) and (grey[..., 0] == np.arange(80, dtype=np.uint8).reshape(4, 5, 4)[..., 0]).all()


def test_image_errors_name_the_file(tmp_path: Path) -> None:
    file = picture(tmp_path / "a/1.png", size=(40, 40))
    source = ImageFolder(path=str(tmp_path))
    whole = file.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"text, not pixels", whole[:40]):
        file.write_bytes(broken)
        with pytest.raises(DataError, match=r"a/1\.png: cannot be decoded as an image"):
            source.open()[0]
    file.write_bytes(whole)
    with pytest.raises(DataError, match="40 x 40 = 1600 pixels, at most 1599 are read"):
        ImageFolder(path=str(tmp_path), max_pixels=1599).open()[0]
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file)
    with pytest.raises(DataError, match="do not fit 8 bits"):
        source.open()[0]


def test_fingerprint_follows_content_and_settings(tmp_path: Path) -> None:
    import shutil

    root = text_folder(tmp_path / "here")
    source = TextFolder(path=str(root))
    before = source.fingerprint()
    shutil.copytree(root, tmp_path / "there")
    assert TextFolder(path=str(tmp_path / "there")).fingerprint() == before
    assert TextFolder(path=str(root), errors="replace").fingerprint() != before
    assert TextFolder(path={"train": str(root)}).fingerprint() != before
    put(root / "a/1.txt", "One")
    changed = source.fingerprint()
    assert changed != before
    (root / "a/1.txt").rename(root / "a/0.txt")
    assert source.fingerprint() not in (before, changed)

    file = picture(tmp_path / "images/a/1.bmp", size=(100, 100))
    images = ImageFolder(path=str(tmp_path / "images"))
    before, content = images.fingerprint(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert images.fingerprint() != before


def test_fingerprint_of_large_files_is_sampled_but_sees_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxtune.data.sources import base

    monkeypatch.setattr(base, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(base, "SAMPLE_BYTES", 10)
    content = bytearray(range(256)) * 10
    file = put(tmp_path / "x.csv", bytes(content))
    digests = {base.file_digest(file)}
    for position in (0, len(content) - 1):
        other = bytearray(content)
        other[position] ^= 1
        digests.add(base.file_digest(put(file, bytes(other))))
    digests.add(base.file_digest(put(file, bytes(content[:-1]))))
    assert len(digests) == 4


def test_in_memory_is_equal_by_content() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    one, same = (InMemory(records=({"image": image.copy(), "label": 1},)) for _ in range(2))
    other = InMemory(records=({"image": image + 1, "label": 1},))
    assert one == same and hash(one) == hash(same) and one != other
    assert InMemory(records=({"label": "1"},)) != InMemory(records=({"label": 1},))
    assert one.open()[0]["image"].dtype == np.uint8


def test_many_records_are_named_by_fingerprint() -> None:
    source = InMemory(records=tuple({"text": str(row)} for row in range(101)))
    dumped = source.model_dump()
    assert dumped == {"records": {"count": 101, "fingerprint": source.fingerprint()}}
    again = InMemory.model_validate(dumped)
    assert again == source
    with pytest.raises(ConfigError, match="the 101 records of this experiment were made in Python"):
        again.open()
    with pytest.raises(DataError, match="found none"):
        InMemory(records=()).open()
