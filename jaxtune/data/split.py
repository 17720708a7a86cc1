"""Which rows train, validate and test.

Rows that belong together (copies of one text, a patient's images) are joined into units first, and only units are dealt out, so no kind of
split can part them. Units are dealt in the order of a hash of seed and content: not of row numbers or a generator's stream, so the
same data in another order, on another platform or numpy version, split alike.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, model_validator

from jaxtune.core.component import Component, nearest
from jaxtune.core.errors import ConfigError, DataError
from jaxtune.core.printable import printable
from jaxtune.data.duplicates import copies
from jaxtune.data.sources.base import SPLIT_NAMES, SplitName

Columns = Mapping[str, Sequence[Any]]
Assignment = dict[str, np.ndarray]  # split name -> sorted row numbers, i64
Unit = list[int]


class Split(Component):
    """How rows are dealt to "train", "validation" and "test"."""

    duplicates: Literal["keep_together", "ignore", "error"] = Field(
        "keep_together",
        description="Rows with the same content: keep_together puts them into one split (where the data name the split, copies of test and "
        "validation rows are left out of training); ignore treats them as different; error stops when there are any that could be parted.",
    )

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that `assign` looks at."""
        return ()

    def assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        """Row numbers per split, i64, sorted. `columns` hold at least `needs`; `keys` are equal for rows of equal content.

        Raises:
            ConfigError: a column is not there, or a split comes out empty (with the counts).
            DataError: values that this kind of split cannot use; duplicates when they are an error.
        """
        for name in self.needs:
            if name not in columns:
                raise ConfigError(f'split: no field "{name}"{nearest(name, tuple(columns))} (the records have: {", ".join(columns)})')
        if not len(keys):
            raise DataError("split: expected rows, found none (do the transforms leave all of them out?)")
        return self._assign(columns, keys)

    def _assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        raise NotImplementedError


class Dealt(Split):
    """Base of the splits that choose rows themselves, by fractions."""

    seed: NonNegativeInt = Field(
        default=0, description="Another seed deals the rows differently; it is independent of the seed of training."
    )
    validation: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the rows for validation.")
    test: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of the rows for the test.")

    @model_validator(mode="after")
    def _leaves_some(self) -> Dealt:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on; their sum must be below 1")
        return self

    def _assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        shares = (1.0 - self.validation - self.test, self.validation, self.test)
        units = self._units(columns, keys)
        parts = _deal(units, self._classes(columns, len(keys)), shares, keys, f"{self.seed}", training=True)
        return _checked(dict(zip(SPLIT_NAMES, parts, strict=True)), dict(zip(SPLIT_NAMES, shares, strict=True)), len(units))

    def _classes(self, columns: Columns, count: int) -> list[str]:
        return [""] * count

    def _units(self, columns: Columns, keys: Sequence[str]) -> list[Unit]:
        return _units(len(keys), _together(self.duplicates, keys))


class Random(Dealt):
    """Rows at random."""


class Stratified(Dealt):
    """Every class has the same share in each split, to within one row (or the largest group of copies)."""

    by: str = Field(default="label", description="The field whose values keep their shares.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def _classes(self, columns: Columns, count: int) -> list[str]:
        return _strata(columns, self.by)


class Grouped(Dealt):
    """Rows with the same value stay in one split: a patient's images, an author's texts."""

    by: str = Field(description="The field whose equal values stay together.")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def _units(self, columns: Columns, keys: Sequence[str]) -> list[Unit]:
        missing = [row for row, value in enumerate(columns[self.by]) if value is None]
        if missing:
            raise DataError(
                f'split: {len(missing)} rows have no value in "{self.by}" (rows {_some(missing)}); fill it in, or filter them out'
            )
        return _units(len(keys), _together(self.duplicates, keys), _words(columns[self.by]))


class KFold(Split):
    """Fold number `fold` of `folds` is the test split; over all folds every row is tested once."""

    folds: int = Field(default=5, ge=2, description="How many parts.")
    fold: NonNegativeInt = Field(default=0, description="Which part is the test split, from 0.")
    by: str | None = Field(default=None, description="The field whose values keep their shares in every fold.")
    validation: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share for validation of the rows that are not tested.")
    seed: NonNegativeInt = Field(default=0, description="Another seed deals the folds differently; use one seed for all folds.")

    @model_validator(mode="after")
    def _in_range(self) -> KFold:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} does not exist: {self.folds} folds are numbered 0 to {self.folds - 1}")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.by is None else (self.by,)

    def _assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        classes = [""] * len(keys) if self.by is None else _strata(columns, self.by)
        units = _units(len(keys), _together(self.duplicates, keys))
        folds = _deal(units, classes, (1.0 / self.folds,) * self.folds, keys, f"{self.seed} folds")
        tested = set(folds[self.fold])
        rest = [unit for unit in units if unit[0] not in tested]
        kept = (1.0 - self.validation, self.validation)
        train, validation = _deal(rest, classes, kept, keys, f"{self.seed} fold {self.fold}", training=True)
        shares = {"train": 1.0, "validation": self.validation, "test": 1.0 / self.folds}
        return _checked({"train": train, "validation": validation, "test": folds[self.fold]}, shares, len(units))


class Named(Split):
    """Base of the splits that the data name themselves."""

    def _named(self, words: Sequence[str], meaning: Mapping[str, str], keys: Sequence[str]) -> dict[str, list[int]]:
        """Rows per split; test rows stay, copies of them go from validation and training, copies of validation rows from training."""
        parts: dict[str, list[int]] = {name: [] for name in SPLIT_NAMES}
        for row, word in enumerate(words):
            parts[meaning[word]].append(row)
        if self.duplicates == "ignore":
            return parts
        owner = {keys[row]: name for name in SPLIT_NAMES for row in parts[name]}  # the last one wins: test, then validation
        leaks = [row for name in SPLIT_NAMES for row in parts[name] if owner[keys[row]] != name]
        if leaks and self.duplicates == "error":
            raise DataError(
                f"split: {len(leaks)} rows occur again in a later split (rows {_some(leaks)}); "
                "remove them, or set duplicates: keep_together"
            )
        gone = set(leaks)
        return {name: [row for row in rows if row not in gone] for name, rows in parts.items()}


class Column(Named):
    """The values of a field name the splits."""

    by: str = Field(default="split", description="The field whose value names the split.")
    names: dict[str, SplitName] = Field(
        {}, description="What the values mean, when they are not train, validation and test: {dev: validation}."
    )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.by,)

    def _assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        meaning: dict[str, str] = {**{name: name for name in SPLIT_NAMES}, **self.names}
        words = _words(columns[self.by])
        idle = [name for name in self.names if name not in words]
        if idle:
            known = sorted(set(words))
            raise ConfigError([f'split: names: "{name}" does not occur in field "{self.by}"{nearest(name, known)}' for name in idle])
        unknown = Counter(word for word in words if word not in meaning)
        if unknown:
            found = "; ".join(f'"{printable(word)}" {count} times{nearest(word, meaning)}' for word, count in unknown.most_common(5))
            raise ConfigError(
                f'split: field "{self.by}" must hold {", ".join(SPLIT_NAMES)}; found {found}. '
                f"Say what they mean: names: {{{printable(next(iter(unknown)))}: validation}}"
            )
        return _checked(self._named(words, meaning, keys), {"train": 1.0}, len(keys))


class Given(Named):
    """The splits that the source names (its `path` or `split` is a mapping); validation can be taken from the training rows."""

    validation: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the training rows for validation, when the source names none."
    )
    seed: NonNegativeInt = Field(default=0, description="Another seed takes other rows for validation.")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("split",)

    def assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        if "split" not in columns:
            raise ConfigError("split: given needs a source that names its splits: write its path (tfds: split) as {train: ..., test: ...}")
        return super().assign(columns, keys)

    def _assign(self, columns: Columns, keys: Sequence[str]) -> Assignment:
        parts = self._named(_words(columns["split"]), {name: name for name in SPLIT_NAMES}, keys)
        if self.validation:
            if held := len(parts["validation"]):
                raise ConfigError(
                    f"split: validation {self.validation} has no effect, the source names {held} validation rows; leave it out"
                )
            rows = parts["train"]
            within = _units(len(rows), _together(self.duplicates, [keys[row] for row in rows]))
            units = [[rows[position] for position in unit] for unit in within]
            shares = (1.0 - self.validation, self.validation)
            parts["train"], parts["validation"] = _deal(units, [""] * len(keys), shares, keys, f"{self.seed}", training=True)
        return _checked(parts, {"train": 1.0, "validation": self.validation}, len(keys))


def _together(duplicates: str, keys: Sequence[str]) -> list[str] | None:
    """What joins rows of equal content: their keys, or nothing.

    Raises:
        DataError: there are copies and they are an error.
    """
    if duplicates == "ignore":
        return None
    if duplicates == "error" and (same := copies(keys)):
        some = "; ".join(f"rows {_some(rows)}" for rows in same[:10])
        raise DataError(f"split: {len(same)} contents occur more than once ({some}); remove the copies, or set duplicates: keep_together")
    return list(keys)


def _units(count: int, *tied: Sequence[str] | None) -> list[Unit]:
    """Rows joined wherever they share a value in one of the `tied` columns, directly or through other rows; in order of first row."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for values in tied:
        first: dict[str, int] = {}
        for row, value in enumerate(values or ()):
            a, b = root(first.setdefault(value, row)), root(row)
            parent[max(a, b)] = min(a, b)
    units: dict[int, Unit] = {}
    for row in range(count):
        units.setdefault(root(row), []).append(row)
    return list(units.values())


def _deal(
    units: Sequence[Unit], classes: Sequence[str], shares: Sequence[float], keys: Sequence[str], seed: str, training: bool = False
) -> list[list[int]]:
    """Rows per share; within each class every share is met to within the size of the class's largest unit.

    Large units first; each goes where it fits and the largest part of the class's share is missing. When it fits nowhere, it goes to the
    share that misses most rows over all classes, so that a hundred small classes do not all round the same way. With `training`,
    the first share gets the first unit of every class: a class of one unit is then never unseen. A unit with several classes counts
    under its most frequent one.
    """
    by_class: dict[str, list[Unit]] = {}
    for unit in units:
        counts = Counter(classes[row] for row in unit)
        by_class.setdefault(min(counts, key=lambda name: (-counts[name], name)), []).append(unit)
    parts: list[list[int]] = [[] for _ in shares]
    overall = [0.0] * len(shares)  # rows that each share still misses, over the classes so far
    for name in sorted(by_class):
        members = sorted(by_class[name], key=lambda unit: (-len(unit), _order(seed, unit, keys)))
        wanted = [share * sum(map(len, members)) for share in shares]
        missing = list(wanted)
        overall = [a + b for a, b in zip(overall, wanted, strict=True)]
        for number, unit in enumerate(members):
            size = len(unit)
            fits = [part for part in range(len(shares)) if missing[part] >= size - 1e-9]
            if training and number == 0:
                best = 0
            elif fits:
                best = max(fits, key=lambda part: missing[part] / wanted[part])
            else:
                short = [part for part in range(len(shares)) if missing[part] > 1e-9]
                best = max(short or range(len(shares)), key=lambda part: overall[part])
            parts[best] += unit
            missing[best] -= size
            overall[best] -= size
    return parts


def _order(seed: str, unit: Unit, keys: Sequence[str]) -> bytes:
    """Where a unit stands in the order of dealing: a hash of the seed and of its content."""
    content = min(str(keys[row]) for row in unit)
    return hashlib.blake2b(f"{seed} {content}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _checked(parts: Mapping[str, Sequence[int]], shares: Mapping[str, float], units: int) -> Assignment:
    """Raises:
    ConfigError: a split that was asked for is empty.
    """
    empty = [name for name in parts if shares.get(name, 0.0) > 0.0 and not parts[name]]
    if empty:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in parts.items())
        rows = sum(map(len, parts.values()))
        raise ConfigError(
            f"split: {' and '.join(empty)} would be empty (rows: {counts}; {rows} rows in {units} units that stay together); "
            "give it a larger share, or more data"
        )
    return {name: np.array(sorted(rows), np.int64) for name, rows in parts.items()}


def _words(values: Sequence[Any]) -> list[str]:
    """Every value as text, for comparing and sorting; a list of labels (multi-label) is one value."""
    return [str(sorted(map(str, value))) if isinstance(value, list | tuple | np.ndarray) else str(value) for value in values]


def _strata(columns: Columns, by: str) -> list[str]:
    """Raises:
    ConfigError: most values occur once, so there are no shares to keep.
    """
    words = _words(columns[by])
    alone = sum(count == 1 for count in Counter(words).values())
    if alone > len(words) / 2:
        raise ConfigError(
            f'split: {alone} of {len(words)} rows have a value of their own in "{by}", but stratifying needs values that repeat; '
            "name a field that holds classes, or use {kind: random}"
        )
    return words


def _some(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
