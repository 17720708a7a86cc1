"""Streaming metrics: device sums while evaluating, names and numbers at the end. One file per metric or close family."""

from __future__ import annotations

METRICS = {
    "accuracy": "jaxtune.metrics.accuracy:Accuracy",
    "f1": "jaxtune.metrics.f1:F1",
    "matthews": "jaxtune.metrics.matthews:Matthews",
    "auc": "jaxtune.metrics.auc:Auc",
    "loss": "jaxtune.metrics.loss:MeanLoss",
    "expected_calibration_error": "jaxtune.metrics.calibration:ExpectedCalibrationError",
    "mean_squared_error": "jaxtune.metrics.regression:MeanSquaredError",
    "mean_absolute_error": "jaxtune.metrics.regression:MeanAbsoluteError",
    "pearson": "jaxtune.metrics.regression:Pearson",
    "r2": "jaxtune.metrics.regression:R2",
    "perplexity": "jaxtune.metrics.language:Perplexity",
    "token_accuracy": "jaxtune.metrics.language:TokenAccuracy",
    "preference_accuracy": "jaxtune.metrics.preference:PreferenceAccuracy",
    "reward_margin": "jaxtune.metrics.preference:RewardMargin",
}
