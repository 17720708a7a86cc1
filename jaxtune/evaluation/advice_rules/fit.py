"""Rules about how long and how closely a run was followed: overfitting, ends too early, evaluations too rare, phases that change nothing."""

from __future__ import annotations

import math

import numpy as np

from jaxtune.evaluation import wording
from jaxtune.evaluation.advice_rules.evidence import Evidence, Finding, PhaseSeen, Rule, median

ROSE = 0.1  # of the lowest validation loss
GAP = 0.4  # of a guess
FEW_EVALUATIONS = 4
AFFORDABLE = 0.25  # of the time of the steps


def overfitting(evidence: Evidence) -> Finding | None:
    """The validation loss turned while the training loss went on falling, or stands far above it."""
    at, loss = (np.concatenate([getattr(p, name) for p in evidence.phases] or [np.empty(0)]) for name in ("at", "validation"))
    finite = np.isfinite(loss)
    at, loss = at[finite], loss[finite]
    if len(at) < 3:
        return None
    low = int(loss.argmin())
    levels = [training_level(evidence, step) for step in at]
    rise = loss[-1] - loss[low]
    turned = len(at) - low > 2 and rise > max(ROSE * loss[low], 0.1 * evidence.guess) and levels[-1] < levels[low]
    gaps = loss - np.array(levels)
    apart = gaps[-1] > GAP * evidence.guess and levels[-1] < 0.3 * loss[-1]
    if not turned and not apart:
        return None
    opened = at[low] if turned else at[int(np.argmax(gaps > GAP / 2 * evidence.guess))]
    phase = next(phase for phase in reversed(evidence.phases) if opened > phase.begin)
    epochs = f" (epoch {(opened - phase.begin) / phase.epoch_steps:.1f} of phase {phase.number + 1})" if phase.epoch_steps else ""
    saw = (
        f"The validation loss ended at {wording.value(loss[-1])}"
        + (f", {rise / loss[low]:.0%} above its lowest," if turned else "")
        + f" while the training loss fell to {wording.value(levels[-1])}; the gap opened at step {int(opened):,}{epochs}."
    )
    change = held_back(evidence, phase)
    if opened < phase.steps[-1] and turned:
        change = (*phase.with_length((opened - phase.begin) / max(phase.planned or len(phase), 1)), *change)
    rows = (evidence.facts.get("rows") or {}).get("train")
    of = f" of the {rows:,} training rows" if rows else ""
    return Finding(saw, change, f"From there on the model learns the examples{of} by heart. More data, or more varied ones, help most.")


def held_back(evidence: Evidence, phase: PhaseSeen) -> tuple[str, ...]:
    """What makes learning by heart harder: for texts dropout twice as strong as is given, for images weight decay (not all families drop)."""
    if evidence.record.problem is None or not str(evidence.record.task["kind"]).startswith("text"):
        return (f"{phase.key}.optimizer.weight_decay={max(0.05, 2 * phase.settings['optimizer'].get('weight_decay', 0.0)):g}",)
    given = evidence.experiment["model"].get("dropout")
    old = given.get("hidden") if isinstance(given, dict) else None
    rate = min(0.5, 2 * old) if old else 0.2
    return (f"model.dropout={{hidden: {rate:g}, attention: {rate / 2:g}, head: {rate:g}}}",)


def training_level(evidence: Evidence, step: float) -> float:
    """The training loss around a step: the median of the epoch before it, of at least 5 steps."""
    phase = next((phase for phase in reversed(evidence.phases) if step > phase.begin), None)
    return math.nan if phase is None else phase.level(step, max(5, min(phase.epoch_steps or 10, 50)))


def best_at_end(evidence: Evidence) -> Finding | None:
    if not evidence.phases or not evidence.record.result:  # not to its end; its state is still "running" when advice is written
        return None
    phase = evidence.phases[-1]
    usable = np.isfinite(phase.metric) & np.isfinite(phase.validation)
    at, metric, loss = phase.at[usable], phase.metric[usable], phase.validation[usable]
    if len(at) < FEW_EVALUATIONS or loss.argmin() != len(at) - 1 or ended_by(evidence, phase):
        return None
    place = min(int(np.searchsorted(at, phase.begin + (at[-1] - phase.begin) * 2 / 3)), len(at) - 2)
    best = place + int(np.argmax(metric[place:] if evidence.higher_is_better else -metric[place:]))
    gain, fell = evidence.gain(metric[place], metric[best]), loss[place] - loss[-1]
    if at[best] != evidence.record.result.get("best_step") or gain <= evidence.noise(metric[best]) or fell <= 0.05 * evidence.guess:
        return None
    name = wording.metric(evidence.record.best_metric)
    where = "the last one" if best == len(at) - 1 else f"one of the last of {int(at[-1]):,}"
    return Finding(
        f"The best step, {int(at[best]):,}, is {where}; over the last third {name} still went from {wording.value(metric[place])} to "
        f"{wording.value(metric[best])} and the validation loss fell from {wording.value(loss[place])} to {wording.value(loss[-1])}.",
        phase.with_length(2),
        "The run ended while it was still learning; a longer phase costs time only, because the best checkpoint is kept.",
    )


def ended_by(evidence: Evidence, phase: PhaseSeen) -> dict | None:
    """The decision that ended a phase before its time."""
    last = phase.steps[-1]
    found = [e for e in evidence.record.events if e["event"] == "decision" and e["decision"] in ("Stop", "NextPhase") and e["step"] == last]
    return dict(found[-1]) if found else None


def stopped_early(evidence: Evidence) -> Finding | None:
    for phase in evidence.phases:
        decision = ended_by(evidence, phase)
        rules = phase.settings.get("stopping") or []
        place = next((i for i, rule in enumerate(rules) if rule["kind"] == "early_stopping"), None)
        if decision is None or place is None or "not improved" not in decision["reason"] or rules[place]["patience"] > 3:
            continue
        patience, done = rules[place]["patience"], len(phase) / max(phase.planned or len(phase), 1)
        best = float(np.nanmax(phase.metric) if evidence.higher_is_better else np.nanmin(phase.metric))
        drop = evidence.gain(float(phase.metric[-1]), best)
        falling = len(phase.validation) > patience and phase.validation[-1] < phase.validation[-1 - patience]
        if done > 0.7 or not (falling or drop <= evidence.noise(best)):
            continue
        name = wording.metric(evidence.record.best_metric)
        noise = evidence.noise(best)
        sign = (
            f"the validation loss was still falling, from {wording.value(float(phase.validation[-1 - patience]))} to {wording.value(float(phase.validation[-1]))}"
            if falling
            else f"{name} had fallen by {wording.value(max(drop, 0.0))}, less than its standard error of {wording.value(noise)}"
        )
        return Finding(
            f"Early stopping ended phase {phase.number + 1} after {len(phase):,} of {phase.planned or len(phase):,} steps with a patience of "
            f"{wording.plural(patience, 'evaluation')}, although {sign}.",
            (f"{phase.key}.stopping.{place}.patience={max(5, 2 * patience)}",),
            "On few validation rows a metric goes up and down by chance; patience has to outlast that.",
        )
    return None


def evaluated_rarely(evidence: Evidence) -> Finding | None:
    phase = evidence.main
    rows = evidence.facts.get("rows") or {}
    if phase is None or len(phase) < 20 or not rows.get("validation") or ended_by(evidence, phase):
        return None
    count = len(phase.at)
    # an evaluated row costs about a third of a trained one: no backward pass
    possible = AFFORDABLE * 3 * phase.examples * len(phase) / rows["validation"]
    if count >= FEW_EVALUATIONS or possible < FEW_EVALUATIONS:
        return None
    every = max(1, len(phase) // min(10, int(possible)))
    return Finding(
        f"The {len(phase):,} steps of phase {phase.number + 1} were evaluated {wording.plural(count, 'time')}.",
        (f"evaluation.every_steps={every}",),
        f"The best checkpoint is the best of those evaluated, and stop rules act at evaluations only. Every {every} steps costs about "
        f"{rows['validation'] / 3 / phase.examples / every:.0%} more time.",
    )


def idle_phase(evidence: Evidence) -> Finding | None:
    for phase in evidence.phases:
        before, now = evidence.last_metric(phase), phase.metric[np.isfinite(phase.metric)]
        if not math.isfinite(before) or not len(now) or len(phase) < 10:
            continue
        best = float(now.max() if evidence.higher_is_better else now.min())
        first = median(phase.loss[: max(3, len(phase) // 10)])
        earlier = next(p.validation for p in reversed(evidence.phases) if p.number < phase.number and len(p.validation))
        still = abs(phase.validation[-1] - earlier[-1]) < 0.02 * evidence.guess and abs(first - phase.end) < 0.1 * evidence.guess
        if still and evidence.gain(before, best) < 0.5 * evidence.noise(best):
            learned = phase.end < 0.1 * evidence.guess
            name = wording.metric(evidence.record.best_metric)
            return Finding(
                f"Phase {phase.number + 1} took {wording.plural(len(phase), 'step')} and changed nothing: {name} {wording.value(before)} before it, "
                f"{wording.value(best)} at its best, validation loss {wording.value(earlier[-1])} before and {wording.value(phase.validation[-1])} after.",
                phase.with_length(0.25) if learned else phase.with_rate(10),
                "There was little left to learn, so the phase can be shorter." if learned else "Its steps are too short to move the model.",
            )
    return None


RULES = (
    Rule(
        "overfitting",
        "two or more evaluations after its lowest, the validation loss lay more than 10 % and 0.1 of a guess above it while the training loss "
        "went on falling; or it ended more than 0.4 of a guess above a training loss of less than a third of it",
        "a tenth of a guess is several times the change of a validation loss from one evaluation to the next once the rate is small",
        overfitting,
        unless=("rate_too_high",),
    ),
    Rule(
        "best_at_end",
        "the best evaluation lies in the last third of the phase, the last one has the lowest validation loss, and over that third the metric "
        "gained more than its standard error and the loss fell by more than 0.05 of a guess",
        "a smaller gain than the standard error may be chance; under a falling rate the last evaluation is often the best by a hair",
        best_at_end,
        unless=("rate_too_low", "rate_too_high"),
    ),
    Rule(
        "stopped_early",
        "early stopping with a patience of at most 3 ended a phase in its first 70 % while the validation loss was still falling, or the metric "
        "had lost less than its standard error",
        "a loss of less than one standard error happens by chance at every third evaluation",
        stopped_early,
        unless=("rate_too_high",),
    ),
    Rule(
        "evaluated_rarely",
        "the longest phase has 20 steps or more, fewer than 4 evaluations, and 4 would cost less than a quarter of its time",
        "with fewer than 4 points there is no curve, and the best checkpoint is hardly a choice",
        evaluated_rarely,
    ),
    Rule(
        "idle_phase",
        "a later phase moved the validation loss by less than 0.02 of a guess, the training loss by less than 0.1, and the metric by less than "
        "half its standard error",
        "less than that cannot be told from nothing on these validation rows",
        idle_phase,
        unless=("rate_too_low",),
    ),
)
