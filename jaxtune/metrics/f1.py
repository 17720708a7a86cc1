"""F1 in its three averages, with precision and recall per class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from jaxtune.metrics.base import Numbers, State
from jaxtune.metrics.counts import CountingMetric, ratio


class F1(CountingMetric):
    """`f1` (macro: every class weighs the same), `f1_micro` (every answer does), `f1_weighted` (by the class's support).

    Lists by class: `precision_per_class`, `recall_per_class`, `f1_per_class`, `support`. As in scikit-learn, 0 / 0 is 0, and
    a class that neither occurs nor is predicted is left out of the single-label macro average (multi-label: it counts as 0).
    """

    higher_is_better: ClassVar[Mapping[str, bool]] = {"f1": True, "f1_micro": True, "f1_weighted": True}

    def compute(self, state: State) -> Numbers:
        counts = self.read(state)
        each = ratio(2 * counts.hits, counts.predicted + counts.support)
        present = (counts.predicted + counts.support > 0) | counts.multi_label
        weight = counts.support.sum()
        empty = counts.examples == 0
        return {
            "f1": math.nan if empty else float(each[present].mean()),
            "f1_micro": math.nan if empty else float(ratio(2 * counts.hits.sum(), counts.predicted.sum() + weight)),
            "f1_weighted": math.nan if empty else float(ratio(np.sum(each * counts.support), weight)),
            "precision_per_class": ratio(counts.hits, counts.predicted).tolist(),
            "recall_per_class": ratio(counts.hits, counts.support).tolist(),
            "f1_per_class": each.tolist(),
            "support": counts.support.tolist(),
        }
