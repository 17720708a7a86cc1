"""Rules that turn an evaluation into a decision."""

from __future__ import annotations

STOP_RULES = {
    "early_stopping": "jaxtune.training.stopping.early_stopping:EarlyStopping",
    "plateau": "jaxtune.training.stopping.plateau:Plateau",
    "divergence": "jaxtune.training.stopping.divergence:Divergence",
    "time_budget": "jaxtune.training.stopping.time_budget:TimeBudget",
    "target": "jaxtune.training.stopping.target:Target",
}
