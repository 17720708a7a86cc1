"""What every source of records offers: random access by row number, cheap to pickle, and a fingerprint of the content.

Sources read lazily and keep positions instead of data, so a worker process gets a few integers and opens the files itself.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from jaxtune.config.locate import locate
from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.printable import printable

Record = dict[str, Any]
SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")
Paths = Annotated[
    str | dict[SplitName, str],
    Field(
        description="Where the data are: a path or package://name/sub/folder, or one per split ({train: ..., test: ...}): "
        'then every record has a field "split" for `split: given`.'
    ),
]
Encodings = Annotated[
    str | tuple[str, ...],
    Field(description="Text encoding, or several that are tried in turn for each file or line: [utf-8, cp1252]."),
]
DecodingErrors = Annotated[
    Literal["strict", "replace", "ignore"],
    Field(description="What happens to bytes that no encoding explains: stop, put U+FFFD in their place, or leave them out."),
]
WHOLE_BYTES = 64 << 20  # files up to this size enter the fingerprint whole
SAMPLES = 64
SAMPLE_BYTES = 64 << 10


class Records(Protocol):
    """Rows by number, from 0; raises IndexError past the end. Picklable."""

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def label_names(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the classes per field where the source knows them, else {}."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Source(Component):
    """Where records come from."""

    def open(self) -> Records:
        """Raises:
        ConfigError: a path, column or option does not exist.
        DataError: the content cannot be read as this kind of source.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 over content and settings: equal fingerprints mean equal records."""
        raise NotImplementedError


class FileSource(Source):
    """A source over files: one path, or one per split."""

    path: Paths

    def open(self) -> Records:
        if isinstance(self.path, str):
            return self.read(locate(self.path, "data.source.path"))
        if not self.path:
            raise ConfigError('data.source.path: found an empty mapping; give a path, or at least "train"')
        paths = [locate(path, f"data.source.path.{split}") for split, path in self.path.items()]
        return Joined.of([self.read(path) for path in paths], tuple(self.path))

    def read(self, path: Path) -> Records:
        """The records of one path."""
        raise NotImplementedError

    def files(self, path: Path) -> list[Path]:
        """The files that `read` would read, in order."""
        raise NotImplementedError

    def file_digest(self, file: Path) -> str:
        """What stands for the content of one file in the fingerprint."""
        return file_digest(file)

    def fingerprint(self) -> str:
        paths = {"": self.path} if isinstance(self.path, str) else self.path
        parts = [type(self).__qualname__, json.dumps(self.model_dump(mode="json", exclude={"path"}), sort_keys=True)]
        for split, reference in paths.items():
            root = locate(reference, "data.source.path")
            for file in self.files(root):
                name = file.relative_to(root).as_posix() if file != root else ""
                parts += [split, name, self.file_digest(file)]
        return digest(parts)


@dataclass(frozen=True)
class Joined:
    """Several records one after the other; with `splits`, each record says in its field "split" which part it came from."""

    parts: tuple[Records, ...]
    splits: tuple[str, ...] | None
    label_names: Mapping[str, tuple[str, ...]]  # in order of the first part, then names that only later parts know

    @classmethod
    def of(cls, parts: Sequence[Records], splits: tuple[str, ...] | None = None, names: Sequence[object] = ()) -> Joined:
        """Raises:
        DataError: the parts differ in their fields, or have a field "split" of their own.
        """
        names = splits or [str(name) for name in names]
        for part, name in zip(parts, names, strict=True):
            different = sorted(set(part.fields) ^ set(parts[0].fields))
            if different:
                raise DataError(
                    f"{name} has the fields {', '.join(part.fields)}, but {names[0]} has {', '.join(parts[0].fields)} "
                    f"(different: {', '.join(different)}); give both the same fields"
                )
        if splits and "split" in parts[0].fields:
            raise DataError(
                'the files have a field "split" of their own, and path names the splits too; '
                "use one path with `split: {kind: column, by: split}`, or rename the field"
            )
        labels: dict[str, tuple[str, ...]] = {}
        for part in parts:
            for field, known in part.label_names.items():
                labels[field] = tuple(dict.fromkeys(labels.get(field, ()) + tuple(known)))
        return cls(tuple(parts), splits, labels)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    @property
    def fields(self) -> tuple[str, ...]:
        return self.parts[0].fields + (("split",) if self.splits else ())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        index = row_number(index, len(self))
        part = bisect_right(self._ends, index)
        record = self.parts[part][index - (self._ends[part - 1] if part else 0)]
        return {**record, "split": self.splits[part]} if self.splits else record


def row_number(index: int, count: int) -> int:
    """`index` as a Python int.

    Raises:
        IndexError: it is not in [0, count); iteration over records ends by it.
    """
    number = int(index)
    if not 0 <= number < count:
        raise IndexError(f"row {number} of {count}")
    return number


def data_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """`path` itself when it is a file, else the files in the folder with one of the suffixes, sorted by name.

    Raises:
        DataError: the folder holds none.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")) if path.is_dir() else []
    files = [file for file in found if file.suffix.lower() in suffixes]
    if not files:
        held = sorted({file.suffix or file.name for file in found})
        raise DataError(
            f"{path}: expected a file, or a folder with {' or '.join(suffixes)} files; found "
            + (f"{len(found)} files ({', '.join(held[:5])})" if found else "no files in it" if path.is_dir() else "nothing")
        )
    return files


def known_columns(what: str, wanted: Iterable[str], columns: Sequence[str]) -> None:
    """Raises:
    ConfigError: names every wanted column that is not there, with the nearest one that is.
    """
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ConfigError(
            [f'{what}: no column "{name}"{nearest(name, tuple(columns))} (columns: {", ".join(columns)})' for name in missing]
        )


def encoding_names(value: str | tuple[str, ...], lines: bool = False) -> str | tuple[str, ...]:
    """The value of an `encoding` option, when every name in it is one that Python knows; for pydantic validators.

    Raises:
        ValueError: an unknown name, or (when `lines`) an encoding in which a line end is not the byte 0x0A.
    """
    names = (value,) if isinstance(value, str) else value
    if not names:
        raise ValueError("expected at least one encoding, such as utf-8")
    for name in names:
        try:
            newline = codecs.lookup(name).encode("\n")[0]
        except LookupError:
            raise ValueError(f'unknown encoding "{name}"{nearest(name, ("utf-8", "latin-1", "cp1252", "utf-16", "ascii"))}') from None
        if lines and newline != b"\n":
            raise ValueError(f'"{name}" cannot be read line by line; convert the file first: iconv -f {name} -t utf-8 OLD > NEW')
    return value


def decode(raw: bytes, encodings: str | tuple[str, ...], errors: str, where: str) -> str:
    """`raw` as text by the first encoding that explains all of it; line ends become \\n, a byte order mark goes.

    Raises:
        DataError: none does and `errors` is strict; names `where`, the byte and its position.
    """
    names = (encodings,) if isinstance(encodings, str) else encodings
    problem: UnicodeDecodeError | None = None
    text: str | None = None
    for name in names:
        try:
            text = raw.decode(name)
            break
        except UnicodeDecodeError as error:
            problem = problem or error
    if text is None:
        assert problem is not None
        if errors == "strict":
            near = printable(raw[max(0, problem.start - 20) : problem.start + 20].decode("latin-1"))
            more = next((name for name in ("cp1252", "latin-1") if name not in names), None)
            other = f"set `encoding: [{', '.join((*names, more))}]` to try another encoding where the first fails, or " if more else "set "
            raise DataError(
                f"{where}: byte 0x{raw[problem.start]:02x} at position {problem.start} is not {' or '.join(names)} "
                f'(near "{near}"); {other}`errors: replace`'
            ) from problem
        text = raw.decode(names[0], errors)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def digest(parts: Iterable[str]) -> str:
    """SHA-256 of texts; each enters with its length, so that no two lists of texts give the same bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of size and content; of a file over 64 MiB, 64 evenly spaced samples (both ends among them) stand for the content."""
    size = path.stat().st_size
    total = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            total.update(file.read())
        else:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                total.update(file.read(SAMPLE_BYTES))
    return total.hexdigest()
