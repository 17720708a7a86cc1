"""How good a written answer is beside the reference: scores of one text against another, averaged over examples. One file per family."""

from __future__ import annotations

TEXT_METRICS = {
    "exact_match": "jaxtune.metrics.text.answers:ExactMatch",
    "token_f1": "jaxtune.metrics.text.answers:TokenF1",
    "rouge": "jaxtune.metrics.text.rouge:Rouge",
    "chrf": "jaxtune.metrics.text.chrf:Chrf",
    "function": "jaxtune.metrics.text.function:Function",
}
