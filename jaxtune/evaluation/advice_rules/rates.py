"""Rules about the learning rate and the gradients: too high, too low, no warm-up, parts that get no gradient or ever larger ones."""

from __future__ import annotations

import math

import numpy as np

from jaxtune.evaluation import wording
from jaxtune.evaluation.advice_rules.evidence import Evidence, Finding, PhaseSeen, Rule, median

LEAP = 0.3  # of a guess, beyond twice the scatter of a batch
NO_BETTER = 0.9  # of a guess
EARLY = 0.25  # of a phase
FEWEST = 8  # steps of a phase that is judged
BIG_RATE = 1e-2  # of an optimizer that normalises the gradient; a hundred times what pretrained models are tuned with
STUCK_STEPS = 30
DEAD = 1e-5  # of the median part; float32 keeps 7 digits, so a smaller gradient is rounding
GROWTH = 100.0


def leap(evidence: Evidence, phase: PhaseSeen) -> float:
    """How far the smoothed loss rose above where the phase began, in guesses; twice the scatter of a batch is no rise."""
    return (phase.peak - begun_at(evidence, phase) - 2 * phase.scatter) / evidence.guess


def begun_at(evidence: Evidence, phase: PhaseSeen) -> float:
    """The loss that the phase found: of its first step, or of the evaluation before it, whichever is higher; without an evaluation at
    least a guess, because a new head does not know more and one batch may be lucky."""
    before = [p for p in evidence.phases if p.number < phase.number and len(p.validation)]
    found = (phase.start, float(before[-1].validation[-1]) if before else evidence.guess)
    return max((value for value in found if math.isfinite(value)), default=math.nan)


def recovered(evidence: Evidence, phase: PhaseSeen) -> bool:
    start = begun_at(evidence, phase)
    return phase.end < NO_BETTER * evidence.guess and phase.end < start + LEAP * evidence.guess


def too_high(evidence: Evidence) -> Finding | None:
    if evidence.state.get("exit_code") == 71 and evidence.phases:
        phase = evidence.phases[-1]
        saw = f"Loss or gradients stopped being finite at step {int(phase.steps[-1]):,}, at a rate of {phase.highest_rate:.2g}."
        return Finding(saw, phase.with_rate(0.1), "Steps this long leave the region in which the gradient says anything.")
    for phase in evidence.phases:
        if len(phase) < FEWEST:
            continue
        rise = leap(evidence, phase)
        warmed = (phase.settings["optimizer"].get("schedule") or {}).get("warmup", 0) > 0
        first = median(phase.loss[: max(3, len(phase) // 10)])  # one lucky batch at the beginning is no level that was lost
        higher = phase.end > max(first, 1.1 * max(evidence.guess, begun_at(evidence, phase)))
        lost = not recovered(evidence, phase) and (rise > LEAP or higher)
        late = recovered(evidence, phase) and rise > 2 * LEAP and (warmed or phase.peak_place > EARLY)
        if lost or late or stuck(evidence, phase):
            return Finding(
                f"In phase {phase.number + 1} the training loss went from {wording.value(begun_at(evidence, phase))} up to "
                f"{wording.value(phase.peak)} and ended at {wording.value(phase.end)} (guessing costs {wording.value(evidence.guess)}), at a "
                f"rate of up to {phase.highest_rate:.2g}.",
                phase.with_rate(1 / 3 if late else 0.1),
                f"Long steps undo what the model knew. `jaxtune lr-test X.yaml --phase {phase.number}` looks for the rate that the data bear.",
            )
    return None


def stuck(evidence: Evidence, phase: PhaseSeen) -> bool:
    """Whether a phase only learned to guess after a jolt at its beginning, or at a very high rate: its units are dead or saturated."""
    if len(phase) < STUCK_STEPS or phase.end <= NO_BETTER * evidence.guess or only_head(phase):
        return False
    second = phase.loss[len(phase) // 2 :]
    flat = abs(median(second[: len(second) // 2]) - median(second[len(second) // 2 :])) < 0.05 * evidence.guess + 0.5 * phase.scatter
    adaptive = str(phase.settings["optimizer"]["kind"]) not in ("sgd", "optax")
    return flat and (jolt(evidence, phase) > LEAP or (adaptive and phase.highest_rate >= BIG_RATE))


def jolt(evidence: Evidence, phase: PhaseSeen) -> float:
    """How far 16 examples of the first tenth lay above where the phase began, in guesses; three times their scatter is no rise."""
    size = max(1, round(16 / max(phase.examples, 1)))
    first = phase.loss[1 : max(3 + size, len(phase) // 10)]
    first = np.convolve(first[np.isfinite(first)], np.ones(size) / size, mode="valid") if len(first) >= size else first
    highest = float(first.max()) if len(first) else math.nan
    return (highest - begun_at(evidence, phase) - 3 * phase.scatter / math.sqrt(size)) / evidence.guess


def only_head(phase: PhaseSeen) -> bool:
    return all(pattern.startswith("head.") for pattern in phase.settings["train"])


def too_low(evidence: Evidence) -> Finding | None:
    if not evidence.knows_guess and (evidence.record.folder / "lineage.json").exists():
        return None  # a branch begins where another run ended, and what guessing would cost is not known
    for phase in evidence.phases:
        if len(phase) < 10 or leap(evidence, phase) > LEAP or stuck(evidence, phase):
            continue
        first = median(phase.loss[: max(3, len(phase) // 10)])
        fell = first - phase.end
        validated = phase.validation[np.isfinite(phase.validation)]
        moved = (validated[0] - validated[-1]) / evidence.guess if len(validated) > 1 else 0.0
        if phase.end > NO_BETTER * evidence.guess and fell < 0.1 * evidence.guess and abs(moved) < 0.05:
            return Finding(
                f"In {wording.plural(len(phase), 'step')} of phase {phase.number + 1} the training loss went from {wording.value(first)} to "
                f"{wording.value(phase.end)}, no better than {'guessing' if evidence.knows_guess else 'where the run began'} "
                f"({wording.value(evidence.guess)}), at a rate of {phase.highest_rate:.2g}.",
                phase.with_rate(10),
                f"Nothing moved, so the steps are too short (or the inputs do not tell the labels). `jaxtune lr-test X.yaml --phase {phase.number}` "
                "looks for the rate at which the loss falls fastest.",
            )
    return None


def no_warmup(evidence: Evidence) -> Finding | None:
    for phase in evidence.phases:
        schedule = phase.settings["optimizer"].get("schedule") or {}
        if len(phase) < FEWEST or schedule.get("warmup") != 0 or not recovered(evidence, phase):
            continue
        if leap(evidence, phase) > LEAP and phase.peak_place <= EARLY:
            start, place = begun_at(evidence, phase), max(1, round(phase.peak_place * len(phase)))
            return Finding(
                f"In phase {phase.number + 1} the loss leapt from {wording.value(start)} to {wording.value(phase.peak)} within the first "
                f"{wording.plural(place, 'step')}, at the full rate of {phase.highest_rate:.2g}, and then came back to {wording.value(phase.end)}.",
                (f"{phase.key}.optimizer.schedule.warmup=0.1",),
                "The first gradients of a new head are large and point anywhere; a rate that climbs from 0 lets the optimizer see their size first.",
            )
    return None


def dead(evidence: Evidence) -> Finding | None:
    for phase in evidence.phases:
        shots = [shot for shot in phase.parts if len(shot) > 1 and all(map(math.isfinite, shot.values()))]
        if len(shots) < 2:
            continue
        quiet = [part for part in shots[0] if all(shot.get(part, 1.0) <= DEAD * float(np.median(list(shot.values()))) for shot in shots)]
        alive = [shot for shot in shots if max(shot.values()) > 0]
        if quiet and len(alive) == len(shots):
            part = quiet[0]
            least = max(shot[part] for shot in shots)
            others = f" ({', '.join(quiet)})" if len(quiet) > 1 else ""
            kept = ", ".join(f'"{pattern}"' for pattern in (*phase.settings["train"], *(f"!{part}.*" for part in quiet)))
            return Finding(
                f"The gradient of {part} had a norm of at most {least:.2g} at all {len(shots)} evaluations of phase {phase.number + 1}, "
                f"where the parts' median was {median(np.array([np.median(list(shot.values())) for shot in shots])):.2g}{others}.",
                (f"{phase.key}.train=[{kept}]",),
                "A part without a gradient does not learn but costs memory and time: nothing that the loss sees depends on it, or it is saturated.",
            )
    return None


def exploding(evidence: Evidence) -> Finding | None:
    for phase in evidence.phases:
        clipped = phase.settings["optimizer"].get("clip_norm")
        change = phase.with_rate(1 / 3) if clipped else (f"{phase.key}.optimizer.clip_norm=1.0",)
        why = "Gradients that grow while the model learns end in steps that undo it; " + (
            "they are clipped already, so the rate has to fall." if clipped else "clipping bounds every step."
        )
        shots = [shot for shot in phase.parts if shot]
        if len(shots) >= 2:
            grown = {part: shots[-1][part] / first for part, first in shots[0].items() if first > 0 and part in shots[-1]}
            part = max(grown, key=lambda name: grown[name], default=None)
            if part is not None and grown[part] > GROWTH and shots[-1][part] > 10:
                saw = f"The gradient of {part} grew from {shots[0][part]:.2g} to {shots[-1][part]:.3g} during phase {phase.number + 1}."
                return Finding(saw, change, why)
        norms = phase.norm[np.isfinite(phase.norm)]
        if len(norms) >= 20:
            fifth = len(norms) // 5
            first, last = median(norms[:fifth]), median(norms[-fifth:])
            if last > 20 * first > 0 and last > 10:
                saw = f"The gradient's norm grew from {first:.2g} to {last:.3g} during phase {phase.number + 1} (medians of its first and last fifth)."
                return Finding(saw, change, why)
    return None


RULES = (
    Rule(
        "rate_too_high",
        "the run diverged; or the smoothed training loss rose by more than 0.3 of a guess (and twice the scatter of a batch) above where the phase "
        "began and did not come back, or by 0.6 late or in spite of a warm-up; or after a leap within the first tenth of 30 or more steps, or at a "
        "rate of 0.01 or more of an adaptive optimizer, the model only learned to guess",
        "the phase begins with one batch, whose loss may be low by chance: by twice its scatter once in forty runs",
        too_high,
    ),
    Rule(
        "rate_too_low",
        "over 10 or more steps the training loss fell by less than 0.1 of a guess, the validation loss by less than 0.05, and both ended no "
        "better than 0.9 of a guess",
        "any useful rate beats guessing by more than the batches' noise within the first steps",
        too_low,
        unless=("rate_too_high",),
    ),
    Rule(
        "no_warmup",
        "without a warm-up the smoothed loss leapt by more than 0.3 of a guess within the first quarter of a phase, and came back",
        "the same leap as for a rate that is too high; that it came back says that the rate itself can be borne",
        no_warmup,
        unless=("rate_too_high",),
    ),
    Rule(
        "gradients_dead",
        "at every evaluation of a phase a part's gradient had less than 1e-5 of the parts' median norm",
        "float32 keeps seven digits, so a gradient that small is rounding",
        dead,
    ),
    Rule(
        "gradients_exploding",
        "a part's gradient grew more than 100-fold from the first evaluation of a phase to the last, or the whole one more than 20-fold from "
        "its first fifth to its last, to a norm above 10",
        "gradients of a model that learns fall; growth by 10 occurs while a new head grows",
        exploding,
        unless=("rate_too_high",),
    ),
)
