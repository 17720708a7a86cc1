"""The share of right predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from jaxtune.metrics.base import Numbers, State
from jaxtune.metrics.counts import CountingMetric


class Accuracy(CountingMetric):
    """`accuracy`: the share of examples whose prediction is right; multi-label: all labels of it.

    Multi-label also `label_accuracy`, the share of right yes-or-no answers over all labels.
    """

    higher_is_better: ClassVar[Mapping[str, bool]] = {"accuracy": True, "label_accuracy": True}

    def compute(self, state: State) -> Numbers:
        counts = self.read(state)
        result: Numbers = {"accuracy": counts.exact / counts.examples if counts.examples else math.nan}
        if counts.multi_label:
            wrong = int((counts.predicted + counts.support - 2 * counts.hits).sum())
            answers = counts.examples * len(counts.support)
            result["label_accuracy"] = 1.0 - wrong / answers if answers else math.nan
        return result
