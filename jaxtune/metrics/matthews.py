"""The Matthews correlation of predictions and labels, for any number of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from jaxtune.metrics.base import Numbers, State
from jaxtune.metrics.counts import CountingMetric, ratio


class Matthews(CountingMetric):
    """`matthews`: the correlation coefficient R_K (Gorodkin 2004), 0 where it is not defined; multi-label: the mean over labels."""

    higher_is_better: ClassVar[Mapping[str, bool]] = {"matthews": True}

    def compute(self, state: State) -> Numbers:
        counts = self.read(state)
        if not counts.examples:
            return {"matthews": math.nan}
        total = float(counts.examples)
        hits, predicted, support = (x.astype(np.float64) for x in (counts.hits, counts.predicted, counts.support))
        if counts.multi_label:
            above = hits * total - predicted * support
            below = np.sqrt(predicted * (total - predicted) * support * (total - support))
            return {"matthews": float(ratio(above, below).mean())}
        above = hits.sum() * total - np.sum(predicted * support)
        below = np.sqrt((total**2 - np.sum(predicted**2)) * (total**2 - np.sum(support**2)))
        return {"matthews": float(ratio(above, below))}
