"""Whether the model is right as often as it says, and what one temperature, fitted on validation, changes about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxtune.evaluation import charts, wording
from jaxtune.evaluation.analysis import Reliability, reliability
from jaxtune.evaluation.outcomes import Outcomes
from jaxtune.evaluation.sections.seen import MIDDLE, NARROW, Figure, Seen
from jaxtune.evaluation.temperature import COLDEST, FEWEST, HOTTEST, Rescaled, fit_temperature, rescale, rescale_by_halves

SMALL = 0.002  # a change of the calibration error that nobody needs


def calibration(seen: Seen) -> dict[str, Any]:
    outcomes = seen.classified
    if outcomes is None:
        return {"calibration": "", "bins": [], "temperature": None}
    found, changed = _reliability(seen, outcomes), rescaled(seen, outcomes)
    return {"calibration": _said(outcomes, found), "bins": _bins(found), "temperature": None if changed is None else _told(changed)}


def calibration_figures(seen: Seen) -> dict[str, Figure]:
    outcomes = seen.classified
    if outcomes is None:
        return {}
    found, changed = _reliability(seen, outcomes), rescaled(seen, outcomes)
    after = None if changed is None or changed.at_the_end else changed.after
    filled = np.flatnonzero(found.count).tolist()
    text = (
        f"Reliability diagram of {int(found.count.sum())} answers in {len(found.count)} bins of confidence. "
        + " ".join(f"Confidence {found.confidence[i]:.2f}: {found.accuracy[i]:.2f} right." for i in filled)
        + (f" With the temperature the calibration error is {wording.value(after.error)}." if after is not None else "")
    )  # fmt: skip
    return {"calibration": Figure(*(charts.reliability_diagram(found, width, text, after=after) for width in (MIDDLE, NARROW)))}


def rescaled(seen: Seen, outcomes: Outcomes) -> Rescaled | None:
    """The split of interest with the temperature of validation; where validation is all there is, by halves. Never fitted on test, and not
    on very few examples."""
    bins, validation = seen.record.calibration_bins, seen.record.outcomes.get("validation")
    if validation is None or len(validation) < FEWEST:
        return None
    if seen.split == "test":
        return rescale(outcomes, fit_temperature(validation), fitted_on="validation", bins=bins)
    return rescale_by_halves(outcomes, bins=bins) if len(outcomes) >= 2 * FEWEST else None


def _reliability(seen: Seen, outcomes: Outcomes) -> Reliability:
    return reliability(outcomes.confidence, outcomes.right, seen.record.calibration_bins)


def _said(outcomes: Outcomes, found: Reliability) -> str:
    gap, error = found.overconfidence, f"The expected calibration error is {wording.value(found.error)}."
    if outcomes.problem == "multi_label":
        return f"{error} Every label of every example counts as one answer, and its probability as the confidence."
    if abs(gap) < 0.02:
        return f"{error} On average the model is right about as often as it says: confidence and accuracy differ by {abs(gap):.3f}."
    kind = "overconfident: it is sure more often than right" if gap > 0 else "underconfident: it is right more often than it is sure"
    return f"{error} The model is {kind}; on average confidence lies {abs(gap):.3f} {'above' if gap > 0 else 'below'} accuracy."


def _told(changed: Rescaled) -> dict[str, Any]:
    """The sentence about the temperature, and the rows before and after: (what, calibration error, confidence minus accuracy, loss)."""
    where = "validation" if changed.fitted_on == "validation" else "one half of validation for the other"
    if changed.at_the_end:
        bound = f"below {COLDEST:g}" if changed.temperature == COLDEST else f"above {HOTTEST:g}"
        said = f"No temperature is suggested: fitted on {where}, it would lie {bound}, which says that there are too few errors to fit one."
        return {"said": said, "rows": []}
    number, before, after = wording.value(changed.temperature), changed.before.error, changed.after.error
    kind = "softer" if changed.temperature > 1 else "sharper"
    if after < before - SMALL:
        said = f"Suggested temperature: {number} (fitted on {where}). Logits divided by it give {kind} probabilities with a smaller error; answers stay."
    else:
        said = f"The temperature fitted on {where} is {number}; it does not make the probabilities more honest here, so none is suggested."
    rows = [
        ("as trained", before, changed.before.overconfidence, changed.loss_before),
        (f"at temperature {number}", after, changed.after.overconfidence, changed.loss_after),
    ]
    return {"said": said, "rows": rows}


def _bins(found: Reliability) -> list[tuple[str, int, float, float]]:
    """(interval, answers, mean confidence, share that is right) of every bin that holds answers."""
    width = 1 / len(found.count)
    return [
        (f"{i * width:.2f} – {(i + 1) * width:.2f}", int(found.count[i]), float(found.confidence[i]), float(found.accuracy[i]))
        for i in np.flatnonzero(found.count).tolist()
    ]
