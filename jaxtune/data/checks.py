"""What must not reach training: each check looks at plain columns and lists its findings; `stop_on` raises all of them at once.

Checks return instead of raising, so that a user with empty texts and an unknown label reads about both in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxtune.core.component import nearest
from jaxtune.core.errors import DataError
from jaxtune.core.printable import printable
from jaxtune.data.report import label_list

NAMED_ROWS = 10
Parts = Mapping[str, Sequence[int] | np.ndarray]  # split name -> row numbers


@dataclass(frozen=True)
class Problem:
    """One kind of fault: what was found, in which rows, and what to do about it."""

    found: str
    remedy: str
    rows: tuple[int, ...] = ()
    sample: str = ""

    def __str__(self) -> str:
        named = ", ".join(map(str, self.rows[:NAMED_ROWS])) + (
            f" and {len(self.rows) - NAMED_ROWS} more" if len(self.rows) > NAMED_ROWS else ""
        )
        rows = f" (row{'s' if len(self.rows) > 1 else ''} {named})" if self.rows else ""
        sample = f', e.g. "{printable(self.sample)}"' if self.sample else ""
        return f"{self.found}{rows}{sample}; {self.remedy}"


def stop_on(problems: Iterable[Problem], source_rows: Sequence[int] | np.ndarray | None = None) -> None:
    """`source_rows` gives the source's number of every checked row, where transforms have left some out: users know only those.

    Raises:
        DataError: there are problems; one line each.
    """
    if source_rows is not None:
        problems = [replace(problem, rows=tuple(int(source_rows[row]) for row in problem.rows)) for problem in problems]
    lines = [str(problem) for problem in problems]
    if lines:
        raise DataError("\n".join(lines))


def check_records(
    columns: Mapping[str, Sequence[Any]],
    parts: Parts,
    *,
    texts: Sequence[str] = (),
    label: str | None = None,
    targets: Sequence[str] = (),
    label_names: Sequence[str] | None = None,
) -> list[Problem]:
    """All checks on the raw columns of the rows that are in a split; `label` and `targets` name what the task learns."""
    used = sorted({int(row) for rows in parts.values() for row in rows})
    problems = [problem for name in texts for problem in check_texts(columns[name], used, name)]
    if label is not None:
        problems += check_labels(columns[label], parts, label, label_names)
    for name in targets:
        problems += check_targets(columns[name], used, name)
    return problems


def check_texts(texts: Sequence[Any], rows: Iterable[int], field: str = "text", *, messages: bool = False) -> list[Problem]:
    """Texts that are missing, no text at all, or empty; with `messages` a list of those may stand for a text."""
    empty: list[int] = []
    other: list[int] = []
    for row in rows:
        if texts[row] is None or (isinstance(texts[row], str) and not texts[row].strip()):
            empty.append(row)
        elif not isinstance(texts[row], str) and not (messages and _is_talk(texts[row])):
            other.append(row)
    problems: list[Problem] = []
    if empty:
        problems.append(
            Problem(
                f'field "{field}": {len(empty)} empty texts',
                "fill them in, or leave them out: {kind: clean_text, min_characters: 1}",
                tuple(empty),
            )
        )
    if other:
        first = texts[other[0]]
        hint = "for a chat model, set as_chat: true; or name another field" if _is_talk(first) else "name another field"
        problems.append(
            Problem(f'field "{field}": {len(other)} values are no text ({type(first).__name__})', hint, tuple(other), str(first))
        )
    return problems


def _is_talk(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(message, Mapping) and "role" in message for message in value) and bool(value)


def check_labels(labels: Sequence[Any], parts: Parts, field: str = "label", names: Sequence[str] | None = None) -> list[Problem]:
    """Labels that are missing, unknown, never seen in training, or all the same.

    `labels` hold one label per row, or a list (multi-label; an empty list is a row without any). `names` are the classes
    that are declared (by the task or the source); without them, the classes of the training rows are the known ones.
    """
    where = {split: _rows_by_label(labels, rows) for split, rows in parts.items()}
    problems: list[Problem] = []
    missing = sorted(row for by_label in where.values() for row in by_label.pop(None, ()))
    if missing:
        problems.append(
            Problem(f'field "{field}": {len(missing)} rows without a label', "fill them in, or filter these rows out", tuple(missing))
        )
    training = {label for label in where.get("train", {}) if label is not None}
    known = training if names is None else set(names)
    problems += _unknown(where, known, field, "training" if names is None else "the declared classes")
    unseen = [str(name) for name in names or () if name not in training]
    if unseen:
        elsewhere = [row for split in where for name in unseen for row in where[split].get(name, ())]
        shown = ", ".join(printable(name, 30) for name in unseen[:10]) + (" ..." if len(unseen) > 10 else "")
        remedy = "add training rows of these classes, or take them out of the classes with {kind: filter}"
        problems.append(
            Problem(f'field "{field}": {len(unseen)} classes never seen in training: {shown}', remedy, tuple(sorted(elsewhere)))
        )
    if len(training) == 1 and not any(isinstance(value, list | tuple | np.ndarray) for value in labels):
        only = next(iter(training))
        problems.append(
            Problem(f'field "{field}": every training row has the same label "{printable(only)}"', "name the field that holds the classes")
        )
    return problems


def _rows_by_label(labels: Sequence[Any], rows: Iterable[int]) -> dict[str | None, list[int]]:
    """Row numbers per label; under None those without one (an empty list of labels is an answer, not a gap)."""
    found: dict[str | None, list[int]] = {}
    for row in rows:
        value = labels[row]
        missing = value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
        for label in [None] if missing else label_list(value):
            found.setdefault(label, []).append(int(row))
    return found


def _unknown(where: Mapping[str, Mapping[str | None, list[int]]], known: set[str], field: str, whose: str) -> list[Problem]:
    problems: list[Problem] = []
    for split, by_label in where.items():
        for label, rows in by_label.items():
            if label is not None and label not in known:
                hint = nearest(label, sorted(known))
                problems.append(
                    Problem(
                        f'field "{field}": label "{printable(label)}" in {split} is not in {whose}{hint}',
                        "correct it, or put rows of that class into training",
                        tuple(rows),
                    )
                )
    return problems[:NAMED_ROWS]


def check_targets(targets: Sequence[Any] | np.ndarray, rows: Iterable[int], field: str = "target") -> list[Problem]:
    """Numbers to be learned (one per row, or a row of them) that are missing, no number, NaN or infinite."""
    bad: list[int] = []
    for row in rows:
        try:
            good = targets[row] is not None and bool(np.isfinite(np.asarray(targets[row], np.float64)).all())
        except (TypeError, ValueError):
            good = False
        if not good:
            bad.append(int(row))
    if not bad:
        return []
    return [
        Problem(
            f'field "{field}": {len(bad)} values are missing or no finite number',
            "correct them, or filter these rows out",
            tuple(bad),
            str(targets[bad[0]]),
        )
    ]


def check_weights(weights: Sequence[Any] | np.ndarray, rows: Sequence[int] | np.ndarray) -> list[Problem]:
    """Loss weights (per row, or per token of it) that leave nothing to learn from: rows all of weight 0, or all rows so."""
    masked = [int(row) for row in rows if not np.any(np.asarray(weights[row]) > 0)]
    if not masked:
        return []
    if len(masked) == len(rows):
        return [Problem(f"all {len(masked)} rows have every target masked", "check what the loss is taken over: nothing would be learned")]
    return [
        Problem(f"{len(masked)} rows have every target masked", "they teach nothing; leave them out, or allow longer inputs", tuple(masked))
    ]


def check_images(
    images: Callable[[int], np.ndarray], rows: Iterable[int], channels: int | None = None, field: str = "image"
) -> list[Problem]:
    """Images that cannot be read, are not [Y,X,C], have other channels than the model, or non-finite pixels.

    `images(row)` gives one image, so that they are never all in memory. With `channels` None, all must have those of the first.
    """
    unreadable: list[int] = []
    shaped: list[int] = []
    infinite: list[int] = []
    sample: dict[str, str] = {}
    for row in rows:
        try:
            image = np.asarray(images(row))
        except DataError as error:
            unreadable.append(int(row))
            sample.setdefault("unreadable", str(error))
            continue
        if image.ndim != 3 or 0 in image.shape or image.shape[-1] != (channels or image.shape[-1]):
            shaped.append(int(row))
            sample.setdefault("shape", str(image.shape))
            continue
        channels = image.shape[-1]
        if image.dtype.kind not in "uib" and not np.isfinite(image).all():
            infinite.append(int(row))
    problems: list[Problem] = []
    if unreadable:
        first = sample["unreadable"]
        problems.append(
            Problem(
                f'field "{field}": {len(unreadable)} images cannot be read (first: {first})', "repair or remove them", tuple(unreadable)
            )
        )
    if shaped:
        expected = f"[height, width, {channels}]" if channels else "[height, width, channels]"
        found = f'field "{field}": {len(shaped)} images are not {expected} (first: {sample["shape"]})'
        problems.append(Problem(found, "convert them, or set the source's `channels`", tuple(shaped)))
    if infinite:
        problems.append(
            Problem(f'field "{field}": {len(infinite)} images hold NaN or infinite pixels', "correct or remove them", tuple(infinite))
        )
    return problems
