"""What the run found out about its data: training labels that are probably wrong, and near copies of held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.core.printable import printable
from jaxtune.evaluation import wording
from jaxtune.evaluation.data_checks import HELD_OUT, read_pairs
from jaxtune.evaluation.hard_examples import show
from jaxtune.evaluation.sections.seen import Seen
from jaxtune.evaluation.slices import scores
from jaxtune.evaluation.suspects import are_clear, read_suspects

SUSPECTS, LISTED = 12, 60  # with their texts; as rows of a table
PAIRS = 6
_BINS = ((0.99, "99 % and more"), (0.9, "90 to 99 %"), (0.8, "80 to 90 %"), (0.0, "below 80 %"))


def data(seen: Seen) -> dict[str, Any]:
    return {"suspects": _suspects(seen), "near": _near(seen)}


# -- labels -----------------------------------------------------------------------------------------------------------------


def _suspects(seen: Seen) -> dict[str, Any] | None:
    check = seen.record.checks.get("labels")
    if check is None:
        return None
    if check["state"] != "done":
        return {"said": _not_done("Wrong labels were not looked for", check), "how": "", "list": [], "table": [], "left": 0}
    rows = read_suspects(seen.record.folder)
    examples = [
        {
            "shown": show(seen.records, int(row["row"]), seen.record.task), "given": printable(row["label"], 80),
            "suggested": printable(row["suggested"], 80), "probability": float(row["probability"]), "margin": float(row["margin"]),
        }
        for row in rows[:LISTED]
    ]  # fmt: skip
    agreed = check["probe_accuracy"]
    if rows:
        said = f"{wording.plural(len(rows), 'label')} of {check['rows']:,} in training {'is' if len(rows) == 1 else 'are'} suspect"
        if are_clear(len(rows), check["rows"], agreed):
            said += f" (about {wording.percent(check['noise'])} of the labels are estimated to be wrong). "
            said += "Look at them before believing the list: rare and ambiguous examples are on it too."
        else:
            said += (
                f". The probe agrees with only {wording.percent(agreed)} of the labels, so many of these are hard for it rather than wrong."
            )
    else:
        said = f"None of the {check['rows']:,} training labels is suspect."
    how = (
        f"Found by confident learning: a linear probe on the base model's features, fitted on four fifths of the training rows, judges the last "
        f"fifth, five times; it agrees with {wording.percent(agreed)} of the labels. It took {wording.duration(check['seconds'])}."
    )
    if check.get("not_judged"):
        how += f" {wording.plural(check['not_judged'], 'row')} of classes with fewer than five rows were not judged."
    return {"said": said, "how": how, "list": examples[:SUSPECTS], "table": examples[SUSPECTS:], "left": len(rows) - len(examples)}


# -- near copies ------------------------------------------------------------------------------------------------------------


def _near(seen: Seen) -> dict[str, Any] | None:
    check = seen.record.checks.get("near_duplicates")
    if check is None:
        return None
    if check["state"] != "done":
        return {"said": _not_done("Near copies were not looked for", check), "without": "", "how": "", "bins": [], "pairs": []}
    pairs = read_pairs(seen.record.folder)
    told = []
    for split in HELD_OUT:
        outcomes, count = seen.record.outcomes.get(split), check["near_training"].get(split)
        if count is not None:
            of = "" if outcomes is None else f" ({wording.percent(count / max(len(outcomes), 1))})"
            told.append(f"{count:,} {split} {'example has' if count == 1 else 'examples have'} a near copy in training{of}")
    what = "grey values" if "image" in seen.record.task else "groups of three words"
    said = (
        f"{'; '.join(told)}."
        if check["pairs"]
        else f"No two examples of different splits are nearly the same ({check['rows']:,} compared)."
    )
    how = (
        f"Compared by their {what}; {wording.plural(check['pairs'], 'pair')} in different splits, {wording.duration(check['seconds'])}. "
        "Exact copies are kept in one split when the data are divided, so they are not among them."
    )
    return {"said": said, "without": _without(seen, pairs), "how": how, "bins": _bins(pairs), "pairs": _shown(seen, pairs)}


def _without(seen: Seen, pairs: list[Mapping[str, Any]]) -> str:
    """The score of the split without its near copies of training rows."""
    outcomes = seen.outcomes
    near = {pair["row"] for pair in pairs if pair["split"] == seen.split and pair["other_split"] == "train"}
    if outcomes is None or not near:
        return ""
    values, kept = scores(outcomes), ~np.isin(outcomes.rows, list(near))
    if not kept.any():
        return ""
    whole, rest = float(values.mean()), float(values[kept].mean())
    if outcomes.problem == "regression":
        return f"Without them the mean absolute error on {seen.split} is {wording.value(rest)} instead of {wording.value(whole)}."
    return f"Without them {wording.percent(rest)} of {seen.split} are right instead of {wording.percent(whole)}."


def _bins(pairs: list[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """(likeness, pairs, share of the pairs)."""
    counts = dict.fromkeys((name for _, name in _BINS), 0)
    for pair in pairs:
        counts[next(name for least, name in _BINS if pair["likeness"] >= least)] += 1
    return [(name, count, count / len(pairs)) for name, count in counts.items() if count]


def _shown(seen: Seen, pairs: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pairs most alike, those with the split of interest first."""
    first = sorted(pairs, key=lambda pair: (pair["split"] != seen.split, -pair["likeness"]))[:PAIRS]
    return [
        {
            "likeness": float(pair["likeness"]), "split": pair["split"], "other_split": pair["other_split"],
            "shown": [show(seen.records, int(pair[end]), seen.record.task) for end in ("row", "other_row")],
        }
        for pair in first
    ]  # fmt: skip


def _not_done(what: str, check: Mapping[str, Any]) -> str:
    return f"{what}: {printable(check.get('why', 'no reason was kept'), 300)}."
