"""Where the model is right and wrong: classes and confusions; for numbers the residuals; and the hardest examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxtune.evaluation import charts, wording
from jaxtune.evaluation.analysis import class_scores, confusion_matrix, most_confused, most_mistaken, residuals
from jaxtune.evaluation.hard_examples import hard_examples
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.sections.seen import MIDDLE, NARROW, Figure, Seen
from jaxtune.evaluation.slices import CLASS

HARDEST = 12
MATRIX_CLASSES = 20
TABLE_CLASSES = 30  # more of them: the weakest first, the others folded away


def quality(seen: Seen) -> dict[str, Any]:
    outcomes = seen.classified
    single = outcomes if outcomes is not None and outcomes.problem == "single_label" else None
    return {
        "classes": [] if outcomes is None else _classes(seen, outcomes),
        "class_limit": TABLE_CLASSES,
        "matrix": None if single is None else _matrix(single),
        "confused": [] if single is None else _confused(single),
        "residuals": [] if seen.outcomes is None or outcomes is not None else _residuals(seen.outcomes),
        "hardest": [] if seen.outcomes is None else hard_examples(seen.outcomes, HARDEST, seen.record.task, seen.records),
    }


def quality_figures(seen: Seen) -> dict[str, Figure]:
    if seen.outcomes is None:
        return {}
    return _residual_figures(seen.outcomes) if seen.classified is None else {}


# -- classes ----------------------------------------------------------------------------------------------------------------


def _classes(seen: Seen, outcomes: Outcomes) -> list[dict[str, Any]]:
    """One row a class, in class order; of very many classes the weakest first."""
    scores, trend_name = class_scores(outcomes), "validation F1"
    trend: np.ndarray | None = seen.record.class_curve("f1_per_class")
    spread = seen.intervals.get(seen.split, {}).get("f1_per_class")
    if not (trend.ndim == 2 and trend.shape[0] > 1 and trend.shape[1] == outcomes.classes):
        trend, trend_name = _followed(seen, outcomes), "validation share right"
    order = np.arange(outcomes.classes) if outcomes.classes <= TABLE_CLASSES else np.argsort(scores.f1, kind="stable")
    rows = []
    for i in order.tolist():
        told = "" if trend is None else f"{trend_name} from {wording.value(trend[0, i])} to {wording.value(trend[-1, i])}"
        rows.append(
            {
                "name": outcomes.shown[i],
                "precision": float(scores.precision[i]),
                "recall": float(scores.recall[i]),
                "f1": float(scores.f1[i]),
                "interval": spread[i] if isinstance(spread, list) else None,
                "support": int(scores.support[i]),
                "predicted": int(scores.predicted[i]),
                "trend": None if trend is None else charts.sparkline(trend[:, i], told),
                "trend_name": trend_name,
            }
        )
    return rows


def _followed(seen: Seen, outcomes: Outcomes) -> np.ndarray | None:
    """f64[evaluations, C] of the share that is right of each class, where F1 was not measured but the classes were followed."""
    curves = [seen.record.slice_curve(CLASS, name) for name in outcomes.shown]
    return np.stack(curves, 1) if len({len(curve) for curve in curves}) == 1 and len(curves[0]) > 1 else None


def _matrix(outcomes: Outcomes) -> dict[str, Any]:
    """Cells as (count, share of the true class)."""
    chosen = most_mistaken(outcomes, MATRIX_CLASSES)
    support = np.maximum(np.bincount(outcomes.truth, minlength=outcomes.classes)[chosen], 1)
    names = [outcomes.shown[c] for c in chosen]
    counts = confusion_matrix(outcomes, chosen)
    cells = [[(int(n), float(n / whole)) for n in row] for row, whole in zip(counts, support, strict=True)]
    rows = list(zip(names, cells, strict=True))
    return {"names": names, "rows": rows, "left_out": outcomes.classes - len(chosen), "short": all(len(name) <= 4 for name in names)}


def _confused(outcomes: Outcomes) -> list[dict[str, Any]]:
    names, found = outcomes.shown, most_confused(outcomes, 5)
    return [{"truth": names[p.truth], "predicted": names[p.predicted], "count": p.count, "share": p.share} for p in found]


# -- numbers ----------------------------------------------------------------------------------------------------------------


def _residuals(outcomes: Outcomes) -> list[tuple[str, float]]:
    found = residuals(outcomes)
    return [
        ("mean of predicted minus true (bias)", found.bias),
        ("mean absolute error", found.mean_absolute),
        ("root of the mean squared error", found.root_mean_square),
        ("median absolute error", found.median_absolute),
        ("nine of ten absolute errors are below", found.ninetieth_absolute),
        ("largest absolute error", found.largest_absolute),
    ]


def _residual_figures(outcomes: Outcomes) -> dict[str, Figure]:
    error = outcomes.predicted - outcomes.truth
    cloud = f"Predicted over true numbers of {len(outcomes)} examples; the dashed line is a perfect answer."
    middle, spread = wording.value(float(np.median(error))), wording.value(float(error.std()))
    hills = f"Histogram of predicted minus true: median {middle}, standard deviation {spread}."
    return {
        "scatter": Figure(*(charts.scatter(outcomes.truth, outcomes.predicted, width, cloud) for width in (MIDDLE, NARROW))),
        "residuals": Figure(*(charts.histogram(error, width, hills, axis="predicted minus true") for width in (MIDDLE, NARROW))),
    }
