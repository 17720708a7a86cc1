"""`kind: tfds`: a dataset that TensorFlow Datasets has prepared in a random-access format, read without TensorFlow.

Label numbers become their names and bytes become text, so that a dataset gives the same records by TFDS as by any other source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from jaxtune.config.locate import locate
from jaxtune.core.component import nearest
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.printable import printable
from jaxtune.data.sources.base import Joined, Record, Records, Source, SplitName, digest, file_digest, row_number

RANDOM_ACCESS = ("array_record", "parquet")
PREPARE = "prepare it with `tfds build --file_format=array_record`"


class Tfds(Source):
    """Fields: those of the dataset; class labels as names (-1: None), text as str, images and tensors as arrays."""

    path: str | None = Field(
        default=None, description="Folder of the prepared dataset, such as data/tfds/digits or data/tfds/digits/1.0.0."
    )
    name: str | None = Field(
        default=None, description='In place of path: the name below data_dir, "name", "name/config" or "name/config/version".'
    )
    data_dir: str | None = Field(
        default=None, description="Where `name` is looked up (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)."
    )
    split: str | dict[SplitName, str] = Field(
        "train",
        description='The dataset\'s split, also a slice such as "train[:10%]"; or one for each of ours ({train: train, test: test}): '
        'then every record has a field "split" for `split: given`.',
    )

    @model_validator(mode="after")
    def _one_place(self) -> Tfds:
        if (self.path is None) == (self.name is None):
            raise ValueError("expected either path or name, found " + ("both" if self.path else "neither"))
        if self.path is not None and self.data_dir is not None:
            raise ValueError("data_dir has no effect with path; leave it out, or give name in place of path")
        if not self.split:
            raise ValueError('split: found an empty mapping; expected e.g. "train" or {train: train, test: test}')
        return self

    def open(self) -> Records:
        import tensorflow_datasets as tfds

        folder = self.folder()
        try:
            builder = tfds.builder_from_directory(folder)
            features, splits = builder.info.features, builder.info.splits
        except (ValueError, OSError, KeyError, AttributeError) as error:
            raise DataError(f"{folder}: cannot be read as a TFDS dataset ({error}); {PREPARE} and TFDS 4.9 or newer") from error
        formats = sorted(format.value for format in builder.info.available_file_formats())
        if not set(formats) & set(RANDOM_ACCESS):
            raise DataError(
                f"{folder}: file format {', '.join(formats)} has no random access, expected {' or '.join(RANDOM_ACCESS)}; {PREPARE}"
            )
        if not isinstance(features, tfds.features.FeaturesDict):
            raise DataError(
                f"{folder}: expected records with named features, found {type(features).__name__}; {PREPARE} and a FeaturesDict"
            )
        wanted = {"": self.split} if isinstance(self.split, str) else self.split
        unknown = [part for split in wanted.values() for part in _base_names(split) if part not in splits]
        if unknown:
            known = tuple(splits)
            raise ConfigError([f'{folder}: no split "{split}"{nearest(split, known)} (splits: {", ".join(known)})' for split in unknown])
        fields = tuple(sorted(features))  # features.json is a map without an order
        names = {name: labels for name in fields if (labels := _class_names(features[name])) is not None}
        parts: list[Records] = []
        for split in wanted.values():
            try:
                count = splits[split].num_examples
            except (ValueError, KeyError, AssertionError) as error:
                raise ConfigError(
                    f'{folder}: split "{split}" cannot be understood ({printable(error, 120)}); write e.g. "train[:10%]"'
                ) from error
            if not count:
                raise DataError(f'{folder}: split "{split}" holds no examples; choose another (splits: {", ".join(splits)})')
            parts.append(TfdsRecords(folder, split, count, fields, names))
        return parts[0] if isinstance(self.split, str) else Joined.of(parts, tuple(self.split))

    def fingerprint(self) -> str:
        folder = self.folder()
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        content = [part for file in files for part in (file.name, file_digest(file))]
        return digest([type(self).__qualname__, json.dumps(self.split, sort_keys=True), *content])

    def folder(self) -> Path:
        """The folder with dataset_info.json: the given one, or the newest version in it when it holds one config only."""
        if self.path is not None:
            root = locate(self.path, "data.source.path")
        else:
            where = self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
            parent = locate(where, "data.source.data_dir")
            root = parent / str(self.name).replace(":", "/")
            if not root.is_dir():
                known = sorted(folder.name for folder in parent.iterdir() if folder.is_dir() and not folder.name.startswith("."))
                hint = nearest(str(self.name), known)
                raise ConfigError(f'{parent}: no dataset "{self.name}"{hint} (found: {", ".join(known) or "nothing"}); {PREPARE}')
        if (root / "dataset_info.json").is_file():
            return root
        found = [file.parent for depth in ("*", "*/*") for file in sorted(root.glob(f"{depth}/dataset_info.json"))]
        configs = {folder.parent for folder in found}
        if len(configs) != 1:
            held = ", ".join(str(folder.relative_to(root)) for folder in found[:8]) or "no such file below it"
            raise ConfigError(
                f"{root}: expected a folder with one prepared dataset (dataset_info.json), found {held}; name the folder of one"
            )
        return max(found, key=lambda folder: _version(folder.name))


@dataclass(frozen=True)
class TfdsRecords:
    """One split; the files are opened when the first record is asked for and closed in the pickle."""

    folder: Path
    split: str
    count: int
    fields: tuple[str, ...]
    label_names: Mapping[str, tuple[str, ...]]

    @cached_property
    def _data(self) -> Any:
        import tensorflow_datasets as tfds

        builder: Any = tfds.builder_from_directory(self.folder)
        return builder.as_data_source(split=self.split)

    @cached_property
    def _convert(self) -> dict[str, Callable[[Any], Any]]:
        names = self.label_names
        return {field: _labels(names[field]) if field in names else _python for field in self.fields}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        number = row_number(index, self.count)
        try:
            values = self._data[number]
            return {field: convert(values[field]) for field, convert in self._convert.items()}
        except (ValueError, IndexError, RuntimeError, OSError, ImportError) as error:
            raise DataError(
                f'{self.folder}, split "{self.split}", row {number}: cannot be read ({error}); prepare the dataset again'
            ) from error


def _base_names(split: str) -> list[str]:
    """The dataset's own splits in "train[:10%]+test"."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or of a sequence of them; None for another feature."""
    import tensorflow_datasets as tfds

    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if not isinstance(inner, tfds.features.ClassLabel):
        return None
    return tuple(inner.int2str(number) for number in range(inner.num_classes or 0))


def _labels(names: tuple[str, ...]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if np.ndim(value):
            return [convert(number) for number in value]
        return names[int(value)] if int(value) >= 0 else None

    return convert


def _python(value: Any) -> Any:
    """Bytes as text, scalars as Python numbers; arrays of numbers stay."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic):
        return _python(value.item())
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [_python(item) for item in value]
        return value if value.ndim else value.item()
    if isinstance(value, Mapping):
        return {name: _python(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    return value
