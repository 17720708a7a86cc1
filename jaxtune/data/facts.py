"""What a run's data are like, in numbers, as facts.json keeps them: rows, labels, copies, what is cut, what is padding.

Advice and pages look at finished runs without their data, so what they need of it is counted once, before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtune.data.examples import Examples
from jaxtune.data.pack import PackedPlan, packed_width
from jaxtune.data.plan import Plan, choose_widths

FILE = "facts.json"


def recorded(
    facts: Mapping[str, Any],
    splits: Mapping[str, Examples],
    keys: Sequence[str],
    plan: Plan,
    *,
    phases: Sequence[tuple[int, int]],
    limit: int | None,
    possible: int | None,
) -> dict[str, Any]:
    """The contents of facts.json.

    Args:
        facts: of `Prepared`.
        keys: content key of every record.
        plan: the training batches of the first phase.
        phases: (optimizer steps, steps of an epoch) of each phase.
        limit: longest sequence in tokens; None without tokens. A row with two of them may be longer.
        possible: what the base's positions allow at most; None where nothing limits it.
    """
    labels, split = facts["labels"], facts["split"]
    return {
        "rows": dict(facts["rows"]),
        "dropped_by_transforms": facts["dropped_by_transforms"],
        "labels": None if labels is None else labels.as_json(),
        "copies": {
            "repeated": split.repeated,
            "rows": split.copies,
            "left_out": len(split.left_out),
            "conflicts": len(split.conflicts),
            "seen_in_training": seen_in_training(splits, keys),
        },
        "tokens": None if limit is None else tokens(splits["train"], limit, possible),
        "padding": None if plan.lengths is None or limit is None else padding(plan, max(limit, int(plan.lengths.max()))),
        "learned": learned(facts["encoding"]),
        "phases": [{"steps": steps, "epoch_steps": epoch} for steps, epoch in phases],
        "batch_rows": plan.batch_size or max(plan.batch_rows(width) for width in plan.widths or ()),
    }


def learned(encoding: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of texts that are partly learned: how much, and by which chat template; None of others."""
    if "targets" not in encoding:
        return None
    targets = encoding["targets"]
    return {"tokens": targets.tokens, "trained": targets.trained, "untrained_rows": targets.untrained, "template": encoding["template"]}


def seen_in_training(splits: Mapping[str, Examples], keys: Sequence[str]) -> dict[str, int]:
    """Of every other split, the rows whose very content is also a training row."""
    known = {keys[row] for row in np.asarray(splits["train"].ids).tolist()}
    return {name: sum(keys[row] in known for row in np.asarray(part.ids).tolist()) for name, part in splits.items() if name != "train"}


def tokens(train: Examples, limit: int, possible: int | None) -> dict[str, Any]:
    """Lengths of the training rows before cutting, against the limit."""
    lengths = train.column("full_length") if "full_length" in train.facts else np.asarray(train.lengths)
    beyond = np.maximum(lengths.astype(np.int64) - limit, 0)
    return {
        "limit": limit,
        "possible": possible,
        "rows_cut": float((beyond > 0).mean()),
        "tokens_cut": float(beyond.sum() / max(int(lengths.sum()), 1)),
        "quantiles": {f"{share:.0%}": int(np.quantile(lengths, share, method="higher")) for share in (0.5, 0.95, 1.0)},
    }


def padding(plan: Plan, limit: int) -> dict[str, Any]:
    """The share of the batches' places that hold no token, and what it would be with `widths: auto`."""
    assert plan.lengths is not None
    packed = isinstance(plan, PackedPlan)
    wider = (packed_width(plan.lengths),) if packed else choose_widths(plan.lengths, limit, batch_size=plan.batch_size)
    best = replace(plan, widths=wider)
    return {
        "widths": list(plan.widths or ()),
        "share": 1.0 - plan.real_token_share(),
        "auto_widths": list(wider),
        "auto_share": 1.0 - best.real_token_share(),
    }
