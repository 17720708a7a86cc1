"""`kind: text_folder`: one text file per example in a folder per label. Files are read when their record is asked for."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from pydantic import Field, field_validator

from jaxtune.data.sources.base import DecodingErrors, Encodings, FileSource, Records, decode, encoding_names
from jaxtune.data.sources.folder import FolderRecords, labelled_files


class TextFolder(FileSource):
    """Fields: text, label (the folder's name), path (relative, such as "sports/199.txt")."""

    encoding: Encodings = "utf-8"
    errors: DecodingErrors = "strict"
    pattern: str = Field(default="*.txt", description="Which files are examples, by name: *.txt, or * for all.")

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return encoding_names(value)

    def read(self, path: Path) -> Records:
        return FolderRecords.of(path, self.files(path), "text", partial(_load, encodings=self.encoding, errors=self.errors))

    def files(self, path: Path) -> list[Path]:
        return labelled_files(path, lambda file: fnmatchcase(file.name, self.pattern), f"{self.pattern} files")


def _load(file: Path, encodings: str | tuple[str, ...], errors: str) -> str:
    return decode(file.read_bytes(), encodings, errors, str(file))
