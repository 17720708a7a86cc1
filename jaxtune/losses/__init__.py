"""Losses by name, the same in every task. One file per loss or close family."""

from __future__ import annotations

LOSSES = {
    "cross_entropy": "jaxtune.losses.cross_entropy:CrossEntropy",
    "focal": "jaxtune.losses.focal:Focal",
    "binary_cross_entropy": "jaxtune.losses.binary_cross_entropy:BinaryCrossEntropy",
    "mean_squared_error": "jaxtune.losses.regression:MeanSquaredError",
    "mean_absolute_error": "jaxtune.losses.regression:MeanAbsoluteError",
    "huber": "jaxtune.losses.regression:Huber",
}
