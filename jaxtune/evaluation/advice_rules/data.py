"""Rules about the data: leaks, wrong labels, rare classes, texts that are cut, padding, steps that wait, batches of the wrong size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.evaluation import wording
from jaxtune.evaluation.advice_rules.evidence import Evidence, Finding, Rule, median
from jaxtune.evaluation.suspects import are_clear

LEAKED = 0.01  # of a split
NOISY = 0.03  # of the labels
RATIO = 10.0
BEHIND = 0.1
CUT_ROWS, CUT_TOKENS = 0.2, 0.1
EMPTY, SAVED = 0.4, 0.1
WAITING, WAITED_SECONDS, WAITED_EACH = 0.2, 1.0, 0.003
SMALL_BATCH, ROUGH = 8, 0.25
HEADROOM = 0.4


def leak(evidence: Evidence) -> Finding | None:
    rows = evidence.facts.get("rows") or {}
    same = (evidence.facts.get("copies") or {}).get("seen_in_training") or {}
    near = section(evidence.record.checks, "near_training").get("near_training") or {}
    why = "What was seen in training is answered by heart, so the numbers promise more than new data will give."
    together = evidence.experiment["data"]["split"].get("duplicates") == "keep_together"
    change = () if together else ("data.split.duplicates=keep_together",)
    also = "The report has the score without them, predictions/near_duplicates.parquet the pairs: take one of each out."
    cases = ((same, "are also training rows, word for word", change, why), (near, "are near copies of training rows", (), f"{why} {also}"))
    for found, what, change, why in cases:
        told = {split: count for split, count in found.items() if count >= max(2, LEAKED * rows.get(split, math.inf))}
        if told:
            counts = " and ".join(f"{count:,} of {rows[split]:,} {split} rows ({count / rows[split]:.1%})" for split, count in told.items())
            return Finding(f"{counts[0].upper()}{counts[1:]} {what}.", change, why)
    return None


def label_noise(evidence: Evidence) -> Finding | None:
    if evidence.record.problem is None:
        return None
    smoothed = evidence.record.task["loss"].get("label_smoothing")
    change = ("task.loss.label_smoothing=0.1",) if smoothed == 0 else ()
    checked = section(evidence.record.checks, "suspects")
    count, rows, agreed = (checked.get(name, 0) for name in ("suspects", "rows", "probe_accuracy"))
    if count >= max(5, NOISY * rows, 0.5 * (1 - agreed) * rows) and are_clear(count, rows, agreed):
        return Finding(
            f"{count:,} of {rows:,} training labels look wrong ({count / rows:.1%}), to a probe that agrees with {agreed:.0%} of them.",
            change,
            "The model is pulled towards answers that are false. The suspects stand in the report and in predictions/suspects.parquet: look at "
            "the first ones and correct what is wrong; smoothing makes the others weigh less.",
        )
    conflicts = (evidence.facts.get("copies") or {}).get("conflicts") or 0
    train = (evidence.facts.get("rows") or {}).get("train") or 0
    if conflicts >= max(3, 0.01 * train):
        return Finding(
            f"{wording.plural(conflicts, 'content')} occur with different labels.",
            change,
            "One of two different labels of the same content is wrong, and the same hand labelled the rest; `jaxtune check` names the rows.",
        )
    return None


def section(checks: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The part of checks.json that was looked for and holds `key`."""
    return next((part for part in checks.values() if isinstance(part, Mapping) and part.get("state") == "done" and key in part), {})


def imbalance(evidence: Evidence) -> Finding | None:
    counts = {label: count for label, count in evidence.counts.items() if count}
    if len(counts) < 2 or evidence.record.problem != "single_label" or evidence.record.task["loss"].get("class_weights") != "none":
        return None
    common, rare = max(counts, key=lambda c: counts[c]), min(counts, key=lambda c: counts[c])
    ratio = counts[common] / counts[rare]
    tested = ((evidence.facts.get("labels") or {}).get("validation") or {}).get(rare, 0)
    recall = evidence.per_class("recall_per_class") or evidence.per_class("f1_per_class")
    behind = recall.get(rare, math.nan) < recall.get(common, math.nan) - BEHIND
    if ratio < RATIO or not (behind or tested < 10):
        return None
    sign = (
        f"its score on validation is {wording.value(recall[rare])}, that of “{common}” {wording.value(recall[common])}"
        if behind
        else f"validation holds only {wording.plural(tested, 'example')} of it"
    )
    return Finding(
        f"Class “{rare}” has {wording.plural(counts[rare], 'training example')}, “{common}” {counts[common]:,} ({ratio:.0f} times as many); {sign}.",
        ("task.loss.class_weights=balanced",),
        "A loss that counts every example alike gains more from the common class than it loses on the rare one.",
    )


def cut_texts(evidence: Evidence) -> Finding | None:
    told = evidence.facts.get("tokens") or {}
    if not told or told["rows_cut"] < CUT_ROWS or told["tokens_cut"] < CUT_TOKENS:
        return None
    possible, needed = told["possible"] or math.inf, math.ceil(told["quantiles"]["95%"] / 8) * 8
    wanted = int(min(needed, possible))
    change = (f"data.max_tokens={wanted}",) if wanted > told["limit"] else ()
    return Finding(
        f"{told['rows_cut']:.0%} of the training texts are longer than {told['limit']} tokens; {told['tokens_cut']:.0%} of all tokens are cut off.",
        change,
        f"The model never sees the ends. 95 % of the texts have at most {told['quantiles']['95%']:,} tokens"
        + (
            "; longer batches cost time and memory in proportion."
            if change
            else f", but this base reads {told['limit']}: choose one that reads more."
        ),
    )


def padding(evidence: Evidence) -> Finding | None:
    told = evidence.facts.get("padding") or {}
    if not told or told["share"] < EMPTY or told["auto_share"] > told["share"] - SAVED:
        return None
    return Finding(
        f"{told['share']:.0%} of the places in the training batches are padding (widths {', '.join(map(str, told['widths']))}); "
        f"widths {', '.join(map(str, told['auto_widths']))} would leave {told['auto_share']:.0%}.",
        ("data.widths=auto",),
        f"Padding is computed and thrown away: the same steps would take about "
        f"{(1 - told['share']) / (1 - told['auto_share']):.0%} of the computing.",
    )


def data_bound(evidence: Evidence) -> Finding | None:
    timed = [row for phase in evidence.phases for row in phase.rows[1:] if not row["compiled"]]
    seconds, waited = (sum(float(row[name]) for row in timed) for name in ("seconds", "wait_seconds"))
    if len(timed) < 10 or waited < max(WAITING * seconds, WAITED_SECONDS, WAITED_EACH * len(timed)):
        return None
    workers = evidence.experiment["data"].get("workers") or 0
    processors = (evidence.record.starts[-1].get("processors") if evidence.record.starts else None) or 2
    wanted = max(1, processors - 1, 2 * workers if workers < processors else 0)
    return Finding(
        f"Steps waited for data {waited / seconds:.0%} of their time: {waited / len(timed) * 1000:.0f} of {seconds / len(timed) * 1000:.0f} ms.",
        (f"data.workers={wanted}",) if wanted > workers else ("data.augment=[]",) if evidence.experiment["data"].get("augment") else (),
        "The device idles while the host prepares batches. Worker processes prepare several at once; cheaper augmentation, or doing the slow "
        "part once beforehand, helps where the processors are few.",
    )


def batch_small(evidence: Evidence) -> Finding | None:
    phase = evidence.main
    if phase is None or len(phase) < 30 or phase.examples > SMALL_BATCH:
        return None
    half = phase.loss[: len(phase) // 2]
    trend = np.convolve(np.pad(half, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    rough = 1.48 * median(np.abs(half - trend)) / evidence.guess  # the standard deviation of a normal spread
    if not rough > ROUGH:
        return None
    key = "batch_size" if evidence.experiment["data"].get("batch_size") else "batch_tokens"
    size = evidence.experiment["data"][key]
    return Finding(
        f"With {phase.examples:.0f} examples a step the loss of neighbouring steps differs by {rough * evidence.guess:.2g} "
        f"({rough:.0%} of what guessing costs).",
        (f"data.{key}={4 * size}",),
        "Most of such a step follows the accident of its rows. Four times the rows halve the noise; raise the rate by up to 2 with them.",
    )


def memory_headroom(evidence: Evidence) -> Finding | None:
    limit = (evidence.facts.get("device") or {}).get("memory_bytes")
    peaks = [sum(e["memory"][k] for k in ("arguments", "outputs", "temporaries")) - e["memory"]["aliased"] for e in evidence.record.events if e["event"] == "compiled" and "memory" in e]  # fmt: skip
    if not limit or not peaks or not evidence.devices or str(evidence.devices[0]).lower().startswith(("cpu", "tfrt_cpu")):
        return None
    used = max(peaks) / limit
    accumulated = [phase for phase in evidence.phases if phase.settings.get("accumulation", 1) > 1]
    key = "batch_size" if evidence.experiment["data"].get("batch_size") else "batch_tokens"
    if used > HEADROOM or (phase := evidence.main) is None or (phase.examples >= 64 and not accumulated):
        return None
    change = tuple(f"{p.key}.accumulation=1" for p in accumulated) or (f"data.{key}={2 * evidence.experiment['data'][key]}",)
    return Finding(
        f"The step needs {wording.memory(max(peaks))} of the {wording.memory(limit)} of a device ({used:.0%}).",
        change,
        "Larger parts keep an accelerator busier; with a larger batch raise the rate a little, by up to the root of the factor.",
    )


RULES = (
    Rule(
        "leak",
        "1 % or more of the validation or test rows (at least 2) are also training rows, or near copies of them",
        "a hundredth of a split moves its accuracy by up to a point, which is what runs are compared by",
        leak,
    ),
    Rule(
        "label_noise",
        "3 % or more of the training labels (at least 5) are suspected out of fold, by a probe that agrees with at least 85 % of the labels and "
        "suspects half of the others, or suspects 80 % of the others; or 1 % of contents (at least 3) bear different labels",
        "where classes overlap the probe is often wrong about right labels: on made data with nothing wrong, on which it agreed with 71, 86 and "
        "95 % of the labels, it suspected 20, 4 and 0.2 % of all, at most three quarters of what it disagreed with",
        label_noise,
    ),
    Rule(
        "imbalance",
        "the most frequent class has 10 times the training examples of the rarest, no class weights are set, and the rarest scores 0.1 less on "
        "validation or has fewer than 10 examples there",
        "below a ratio of 10 fine-tuned models usually learn rare classes unaided; what counts is that the class really lags",
        imbalance,
    ),
    Rule(
        "cut_texts",
        "20 % or more of the training texts are cut, and 10 % or more of all tokens",
        "below that mostly a few long texts lose their ends",
        cut_texts,
    ),
    Rule(
        "padding",
        "40 % or more of the places in the training batches are padding, and `widths: auto` would have a tenth less",
        "automatic widths aim at 10 %; a tenth of the computing is worth a setting",
        padding,
    ),
    Rule(
        "data_bound",
        "steps waited for data 20 % of their time, at least 1 s in all and 3 ms a step",
        "below a few milliseconds the wait is the hand-over itself",
        data_bound,
    ),
    Rule(
        "batch_small",
        "with at most 8 examples a step, over the first half of the longest phase the loss scatters around its running mean by more than 0.25 of a guess",
        "an example's own loss scatters by half a guess and more, a batch's by the root of its size less: 8 examples stay below 0.2",
        batch_small,
    ),
    Rule(
        "memory_headroom",
        "on an accelerator the compiled step needs at most 40 % of the memory, with fewer than 64 examples a step or with accumulation",
        "twice the batch then fits with a margin",
        memory_headroom,
    ),
)
