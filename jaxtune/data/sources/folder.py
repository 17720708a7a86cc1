"""One file per example in a folder per label: what text and image folders have in common.

Only names are read here; the order is by label, then by file name, both as plain strings, so it is the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtune.core.errors import DataError
from jaxtune.data.sources.base import Record, row_number


def label_folders(root: Path) -> list[Path]:
    """The folders of the labels, by name; names that start with "." or "__" are not labels."""
    return sorted(
        (folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__"))), key=lambda f: f.name
    )


def labelled_files(root: Path, wanted: Callable[[Path], bool], expected: str) -> list[Path]:
    """Every wanted file below the label folders of `root`, in order. `expected` names the kind of file in messages.

    Raises:
        DataError: no such folder, no label folders in it, or label folders without such a file.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder with a folder per label, found {'a file' if root.exists() else 'nothing'}")
    folders = label_folders(root)
    if not folders:
        held = sum(1 for entry in root.iterdir() if entry.is_file())
        raise DataError(
            f"{root}: expected a folder per label with {expected} in it, found {held} files and no folders; "
            "sort the files into folders named like their labels"
        )
    files: list[Path] = []
    empty: list[str] = []
    for folder in folders:
        inside = [file for file in folder.rglob("*") if not _hidden(file.relative_to(folder)) and file.is_file()]
        chosen = sorted((file for file in inside if wanted(file)), key=lambda file: file.relative_to(folder).as_posix())
        files += chosen
        if not chosen:
            kinds = ", ".join(
                f"{count} {suffix or 'without suffix'}" for suffix, count in Counter(file.suffix for file in inside).most_common(4)
            )
            empty.append(f"{folder}: expected {expected}, found {kinds or 'no files'}")
    if empty:
        raise DataError("\n".join(empty) + "; move these folders away, or put files of their label into them")
    return files


def _hidden(inside: Path) -> bool:
    return any(part.startswith((".", "__")) for part in inside.parts)


@dataclass(frozen=True)
class FolderRecords:
    """A record per file: {field: load(file), label: folder name, path: relative to the root, with /}."""

    root: Path
    names: tuple[str, ...]
    field: str
    load: Callable[[Path], object]
    label_names: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, root: Path, files: Sequence[Path], field: str, load: Callable[[Path], object]) -> FolderRecords:
        names = tuple(file.relative_to(root).as_posix() for file in files)
        labels = tuple(dict.fromkeys(name.partition("/")[0] for name in names))
        return cls(root, names, field, load, {"label": labels})

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field, "label", "path")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Record:
        name = self.names[row_number(index, len(self.names))]
        return {self.field: self.load(self.root / name), "label": name.partition("/")[0], "path": name}
