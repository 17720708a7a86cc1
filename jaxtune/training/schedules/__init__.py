"""Learning rates over a phase: plain host functions, so that no schedule is a constant of the compiled step."""

from __future__ import annotations

SCHEDULES = {
    "constant": "jaxtune.training.schedules.shapes:Constant",
    "linear": "jaxtune.training.schedules.shapes:Linear",
    "cosine": "jaxtune.training.schedules.shapes:Cosine",
    "polynomial": "jaxtune.training.schedules.shapes:Polynomial",
    "exponential": "jaxtune.training.schedules.shapes:Exponential",
    "inverse_sqrt": "jaxtune.training.schedules.inverse_sqrt:InverseSqrt",
    "one_cycle": "jaxtune.training.schedules.one_cycle:OneCycle",
    "warmup_stable_decay": "jaxtune.training.schedules.warmup_stable_decay:WarmupStableDecay",
    "piecewise": "jaxtune.training.schedules.piecewise:Piecewise",
    "optax": "jaxtune.training.schedules.any_optax:OptaxSchedule",
}
