"""Numbers and names as a reader wants them: three decimals where they mean something, units in words, metrics by their usual names."""

from __future__ import annotations

import math

NO_BREAK = "\u00a0"
_METRICS = {
    "accuracy": "accuracy",
    "label_accuracy": "accuracy per label",
    "f1": "F1 (macro)",
    "f1_micro": "F1 (micro)",
    "f1_weighted": "F1 (weighted)",
    "matthews": "Matthews correlation",
    "auc": "area under the ROC curve",
    "loss": "loss",
    "expected_calibration_error": "expected calibration error",
    "mean_squared_error": "mean squared error",
    "mean_absolute_error": "mean absolute error",
    "pearson": "Pearson correlation",
    "r2": "R²",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "token_f1": "F1 of the words",
    "chrf": "chrF",
}


def metric(name: str) -> str:
    return _METRICS.get(name, name.replace("_", " "))


def value(number: float) -> str:
    """Three decimals, or three to four digits where the number is very small or large."""
    if not math.isfinite(number):
        return "not defined" if math.isnan(number) else "infinite" if number > 0 else "-infinite"
    size = abs(number)
    if size >= 100:
        return f"{number:,.1f}" if size < 1e6 else f"{number:.3g}"
    return f"{number:.3f}" if size >= 0.00995 or size == 0 else f"{number:.2g}"


def signed(number: float) -> str:
    """As `value`, with its sign; a true minus."""
    if not math.isfinite(number):
        return value(number)
    if number == 0:
        return value(0.0)
    return ("+" if number > 0 else "\u2212") + value(abs(number))


def percent(share: float) -> str:
    if not math.isfinite(share):
        return "not defined"
    if share in (0.0, 1.0):
        return f"{100 * share:.0f}{NO_BREAK}%"
    if share < 0.01:
        return f"{100 * share:.2g}{NO_BREAK}%" if share >= 1e-6 else f"< 0.0001{NO_BREAK}%"
    return f"{100 * share:.1f}{NO_BREAK}%" if share < 0.9995 else f"> 99.9{NO_BREAK}%"


def count(number: float) -> str:
    """22.7 M, 12.3 k; below 10,000 three digits or the whole number."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        scaled = number / size
        if scaled >= (10 if unit == "k" else 0.9995):
            return f"{scaled:.3g}{NO_BREAK}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{NO_BREAK}{unit}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """0.4 s, 47 s, 3 min, 3 min 1 s, 1 h 12 min."""
    if seconds < 9.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{NO_BREAK}s"
    large, small, units = (*divmod(whole, 60), ("min", "s")) if whole < 3600 else (*divmod(round(seconds / 60), 60), ("h", "min"))
    return f"{large}{NO_BREAK}{units[0]}" + (f" {small}{NO_BREAK}{units[1]}" if small else "")


def memory(size: float) -> str:
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= limit:
            return f"{size / limit:.1f}{NO_BREAK}{unit}"
    return f"{size / 1024:.0f}{NO_BREAK}KiB"


def plural(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
