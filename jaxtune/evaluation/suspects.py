"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang 2021).

The probabilities must come from models that did not see the row, or a wrong label is believed because it was learned. A row is counted as
truly of class j when its probability for j is at least what rows labelled j have on average: classes that a model finds hard are judged
by their own measure. The counts say how many labels of class i are really j; that many rows are suspected, those whose probabilities
speak clearest for j against i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.evaluation.predictions import read_rows

FILE = "suspects.parquet"
CLEAR, NEARLY_ALL = 0.85, 0.8  # of the labels the probe agrees with; of the others that are suspects


@dataclass(frozen=True)
class Suspects:
    """The suspected rows, the most suspect first.

    Attributes:
        places: positions in the arrays that were given.
        given, suggested: class numbers.
        probability: of the given class, out of fold.
        margin: probability of the suggested class minus that of the given one.
        noise: estimated share of wrong labels, in all rows.
    """

    places: np.ndarray
    given: np.ndarray
    suggested: np.ndarray
    probability: np.ndarray
    margin: np.ndarray
    noise: float

    def __len__(self) -> int:
        return len(self.places)


def find_suspects(probabilities: np.ndarray, labels: np.ndarray) -> Suspects:
    """Suspects among n rows.

    Args:
        probabilities: [n, C], of models that did not see the row.
        labels: the given classes i64[n].
    """
    joint = calibrated_joint(probabilities, labels)
    n, classes = probabilities.shape
    given = probabilities[np.arange(n), labels]
    worst: dict[int, tuple[float, int]] = {}  # row -> (margin, suggested)
    for i in range(classes):
        rows = np.flatnonzero(labels == i)
        for j in range(classes):
            count = round(float(joint[i, j]))
            if i == j or count == 0:
                continue
            margin = probabilities[rows, j] - given[rows]
            for place in np.argsort(-margin, kind="stable")[:count].tolist():
                if margin[place] > 0:
                    worst[int(rows[place])] = max(worst.get(int(rows[place]), (-1.0, 0)), (float(margin[place]), j))
    places = np.array(sorted(worst, key=lambda row: (-worst[row][0], row)), np.int64)
    margins = np.array([worst[row][0] for row in places.tolist()], np.float64)
    suggested = np.array([worst[row][1] for row in places.tolist()], np.int64)
    off = float(joint.sum() - np.trace(joint))
    return Suspects(places, labels[places], suggested, given[places], margins, off / max(n, 1))


def are_clear(suspects: int, rows: int, agreed: float) -> bool:
    """Whether classes are clear enough for suspects to be wrong labels: the probe agrees with most labels, or suspects nearly all others.
    Where classes overlap it does neither, and most of what it suspects is right."""
    return agreed >= CLEAR or suspects >= NEARLY_ALL * (1 - agreed) * rows


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """i64[C, C]: rows labelled i that are confidently of class j; rows that are confident of nothing count nowhere."""
    classes = probabilities.shape[1]
    present = np.bincount(labels, minlength=classes) > 0
    limits = np.array([probabilities[labels == j, j].mean() if present[j] else np.inf for j in range(classes)])
    above = probabilities >= limits * (1 - 1e-9)  # a mean of equal numbers may be a rounding above them
    best = np.where(above, probabilities, -1.0).argmax(1)
    sure = above.any(1)
    return np.bincount(labels[sure] * classes + best[sure], minlength=classes**2).reshape(classes, classes)


def calibrated_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """f64[C, C]: the confident counts scaled so that every row sums to how often its label was given."""
    counts = confident_joint(probabilities, labels).astype(np.float64)
    support = np.bincount(labels, minlength=len(counts)).astype(np.float64)
    empty = counts.sum(1) == 0
    counts[empty, empty] = 1.0  # no row is confident: the labels are taken as they are
    return counts / counts.sum(1, keepdims=True) * support[:, None]


# -- the file ---------------------------------------------------------------------------------------------------------------


def suspects_table(found: Suspects, rows: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Columns of predictions/suspects.parquet, the most suspect first: row, label, suggested, probability, margin."""
    return {
        "row": rows[found.places],
        "label": [names[i] for i in found.given.tolist()],
        "suggested": [names[i] for i in found.suggested.tolist()],
        "probability": found.probability,
        "margin": found.margin,
    }


def read_suspects(folder: Path) -> list[Mapping[str, Any]]:
    """The rows of a run's suspects.parquet; none where it was not written."""
    return read_rows(folder / "predictions" / FILE)
