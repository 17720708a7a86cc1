"""What a run finds out about its data when it ends: labels that are probably wrong, and near copies of held-out examples in training.

Both cost something and are not needed for the model, so each can be switched off, is left out (and says so) where it would take long,
and never ends a run: what went wrong is written down in its place. `checks.json` holds the outcome, predictions/*.parquet the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.data.near_duplicates import Pair, near_images, near_texts, small_grey
from jaxtune.data.sources.base import Records
from jaxtune.data.transforms.pixels import read_pixels
from jaxtune.evaluation.features import FeatureTable
from jaxtune.evaluation.predictions import read_rows, write_table
from jaxtune.evaluation.probe import out_of_fold
from jaxtune.evaluation.suspects import FILE as SUSPECTS
from jaxtune.evaluation.suspects import find_suspects, suspects_table

NEAR = "near_duplicates.parquet"
MOST_ROWS = 20_000
MOST_PAIRS = 20_000
MOST_WORK = 3_000_000_000  # rows x width x classes of the probe: about a tenth of a second for each of its steps
FEWEST_OF_A_CLASS = 5  # rows; a class with fewer cannot be learned from the other folds
HELD_OUT = ("validation", "test")


def check_labels(
    folder: Path,
    problem: str,
    names: Sequence[str],
    labels: Sequence[Any],
    keys: Sequence[str],
    rows: np.ndarray,
    features: Callable[[], FeatureTable],
    unless: str = "",
) -> dict[str, Any]:
    """Suspects among the training rows, into predictions/suspects.parquet; what `checks.json` says about it.

    Args:
        labels, keys: label and content key of every record.
        rows: record numbers of the training rows.
        features: makes the base model's vectors of these rows; called when they are needed.
        unless: a reason not to look, such as a base without pre-training.
    """

    def look() -> dict[str, Any]:
        index = {name: i for i, name in enumerate(names)}
        table = features()
        given = np.array([index[str(labels[row])] for row in table.ids.tolist()], np.int64)
        counts = np.bincount(given, minlength=len(names))
        judged = counts[given] >= FEWEST_OF_A_CLASS
        if len(np.unique(given[judged])) < 2:
            return skipped(f"fewer than two classes have {FEWEST_OF_A_CLASS} training rows")
        if (work := int(judged.sum()) * table.values.shape[1] * len(names)) > MOST_WORK:
            return skipped(
                f"{judged.sum():,} rows with {len(names):,} classes are too many for the probe ({work / MOST_WORK:.1f} times its limit)"
            )
        kept, compact = np.unique(given[judged], return_inverse=True)
        ids, groups = table.ids[judged], [keys[row] for row in table.ids[judged].tolist()]
        held = out_of_fold(table.values[judged], compact, len(kept), groups=groups)
        found = find_suspects(held.probabilities, compact)
        write_table(folder / "predictions" / SUSPECTS, suspects_table(found, ids, [str(names[i]) for i in kept.tolist()]))
        right = float((held.probabilities.argmax(1) == compact).mean())
        facts = {"rows": len(ids), "not_judged": int((~judged).sum()), "suspects": len(found), "noise": found.noise}
        return facts | {"probe_accuracy": right, "penalty": held.penalty}

    if not unless and problem != "single_label":
        unless = "only tasks with one class per example are looked at"
    if not unless and len(rows) > MOST_ROWS:
        unless = f"the training split has {len(rows):,} rows; at most {MOST_ROWS:,} are looked at"
    return _timed(look, folder / "predictions" / SUSPECTS, unless)


def check_near_duplicates(
    folder: Path, domain: str, content: Sequence[str], records: Records, splits: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Pairs of near copies in different splits, into predictions/near_duplicates.parquet; what `checks.json` says about it.

    Args:
        content: the columns that make an example.
        splits: record numbers by split.
    """
    rows = np.concatenate([splits[name] for name in splits]) if splits else np.empty(0, np.int64)
    sides = [name for name, part in splits.items() for _ in range(len(part))]

    def look() -> dict[str, Any]:
        if domain == "image":
            small = np.stack([small_grey(read_pixels(records[int(row)][content[0]])) for row in rows])
            found = near_images(small, sides)
        else:
            texts = [" ".join(str(records[int(row)].get(name) or "") for name in content) for row in rows]
            found = near_texts(texts, sides)
        write_table(folder / "predictions" / NEAR, pairs_table(found[:MOST_PAIRS], rows, sides))
        near = {split: len({place for pair in found for place in _held_out(pair, sides, split)}) for split in HELD_OUT if split in splits}
        return {"rows": len(rows), "pairs": len(found), "near_training": near}

    unless = f"the splits have {len(rows):,} rows; at most {MOST_ROWS:,} are compared" if len(rows) > MOST_ROWS else ""
    return _timed(look, folder / "predictions" / NEAR, unless)


def skipped(why: str) -> dict[str, Any]:
    return {"state": "left out", "why": why}


def pairs_table(found: Sequence[Pair], rows: np.ndarray, sides: Sequence[str]) -> dict[str, Any]:
    """Columns: row, split, other_row, other_split, likeness; the held-out example of a pair stands first."""
    order = {"test": 0, "validation": 1, "train": 2}
    ends = [sorted((pair.first, pair.second), key=lambda place: order.get(sides[place], 3)) for pair in found]
    return {
        "row": [int(rows[a]) for a, _ in ends],
        "split": [sides[a] for a, _ in ends],
        "other_row": [int(rows[b]) for _, b in ends],
        "other_split": [sides[b] for _, b in ends],
        "likeness": [pair.likeness for pair in found],
    }


def read_pairs(folder: Path) -> list[Mapping[str, Any]]:
    """The pairs of a run, the most alike first; none where they were not written."""
    return read_rows(folder / "predictions" / NEAR)


def _held_out(pair: Pair, sides: Sequence[str], split: str) -> list[int]:
    """The end of a pair that lies in `split`, when the other one trains."""
    ends = (pair.first, pair.second)
    return [a for a, b in (ends, ends[::-1]) if sides[a] == split and sides[b] == "train"]


def _timed(look: Callable[[], dict[str, Any]], file: Path, unless: str) -> dict[str, Any]:
    """Does it, or says why not; a file of an earlier start does not stay behind."""
    file.unlink(missing_ok=True)
    if unless:
        return skipped(unless)
    start = time.perf_counter()
    try:
        found = {"state": "done"} | look()
    except Exception as error:  # also a device that is full: the model is trained, and this is only about its data
        found = {"state": "failed", "why": f"{type(error).__name__}: {printable(error, 300)}"}
    return found | {"seconds": time.perf_counter() - start}
