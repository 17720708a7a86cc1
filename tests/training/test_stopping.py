"""Stop rules as pure functions: what they decide, and that what they remember survives JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.training.stopping import STOP_RULES
from jaxtune.training.stopping.base import Continue, Decision, NextPhase, Report, Rollback, ScaleRate, Stop, StopRule
from jaxtune.training.stopping.divergence import Divergence
from jaxtune.training.stopping.early_stopping import EarlyStopping
from jaxtune.training.stopping.plateau import Plateau
from jaxtune.training.stopping.target import Target
from jaxtune.training.stopping.time_budget import TimeBudget

ADAPTER = TypeAdapter(Annotated[StopRule, OneOf(STOP_RULES)])
EXAMPLES: dict[str, dict[str, Any]] = {
    "early_stopping": {"patience": 2, "min_delta": 0.01, "end": "run"},
    "plateau": {"patience": 1, "factor": 0.5, "min_scale": 0.2},
    "divergence": {"action": "rollback", "rollbacks": 2},
    "time_budget": {"minutes": 1, "seconds": 30},
    "target": {"value": 0.95, "metric": "accuracy"},
}


def report(number: int = 0, f1: float = 0.5, **changed: Any) -> Report:
    given: dict[str, Any] = {
        "step": 10 * number,
        "phase_step": 10 * number,
        "seconds": 20.0 * number,
        "metrics": {"f1": f1, "loss": 1.0 - f1, "accuracy": f1},
        "best": "f1",
        "higher_is_better": True,
        "train_loss": 0.5,
        "skipped": 0,
    }
    return Report(**given | changed)


def decisions(rule: StopRule, reports: Sequence[Report]) -> list[Decision]:
    memory, out = rule.start(), []
    for each in reports:
        before = json.dumps(memory)
        new, decision = rule.decide(memory, each)
        assert json.dumps(memory) == before, "decide must not change what it was given"
        memory = new
        out.append(decision)
    return out


def kinds(rule: StopRule, reports: Sequence[Report]) -> list[type]:
    return [type(decision) for decision in decisions(rule, reports)]


def scores(*values: float) -> list[Report]:
    return [report(i, value) for i, value in enumerate(values)]


ROUGH = [
    report(i, f1, train_loss=loss, skipped=skipped)
    for i, (f1, loss, skipped) in enumerate(
        [(0.5, 1.0, 0), (0.6, 0.5, 0), (0.6, 2.0, 1), (0.59, 0.4, 30), (0.7, math.nan, 31), (0.96, 0.3, 31), (0.9, 0.2, 31), (0.9, 0.2, 31)]
    )
]


@pytest.mark.parametrize("kind", STOP_RULES)
def test_resumed_rules_decide_as_undisturbed_ones(kind):
    rule = ADAPTER.validate_python({"kind": kind, **EXAMPLES[kind]})
    assert ADAPTER.validate_python(ADAPTER.dump_python(rule)) == rule
    expected = decisions(rule, ROUGH)
    assert any(type(decision) is not Continue for decision in expected)
    assert all(decision.reason for decision in expected if type(decision) is not Continue)
    memory = rule.start()
    for number, each in enumerate(ROUGH):
        memory = json.loads(json.dumps(memory, allow_nan=False))
        reloaded = ADAPTER.validate_python(json.loads(ADAPTER.dump_json(rule)))
        memory, decision = reloaded.decide(memory, each)
        assert decision == expected[number]


def test_early_stopping_counts_evaluations_without_improvement():
    assert kinds(EarlyStopping(patience=2), scores(0.5, 0.6, 0.6, 0.7, 0.65, 0.7)) == [Continue] * 5 + [NextPhase]
    assert kinds(EarlyStopping(patience=1, end="run"), scores(0.5, 0.4)) == [Continue, Stop]
    assert kinds(EarlyStopping(patience=1, min_delta=0.05), scores(0.5, 0.54)) == [Continue, NextPhase]
    assert kinds(EarlyStopping(patience=2), scores(0.5, math.nan, math.nan)) == [Continue, Continue, NextPhase]
    reason = decisions(EarlyStopping(patience=1), scores(0.5, 0.4))[-1].reason
    assert reason == "f1 has not improved on 0.5 for 1 evaluation (now 0.4)"


def test_lower_is_better_where_it_is():
    lower = [report(i, v, best="loss", higher_is_better=False) for i, v in enumerate((0.5, 0.6, 0.7))]  # the loss falls
    assert kinds(EarlyStopping(patience=1), lower) == [Continue] * 3
    assert kinds(EarlyStopping(patience=1, metric="loss"), scores(0.5, 0.6, 0.7, 0.6)) == [Continue] * 3 + [NextPhase]
    own = [report(i, metrics={"f1": 0.5, "regret": value}) for i, value in enumerate((3.0, 2.0, 2.5))]
    assert kinds(EarlyStopping(patience=1, metric="regret", better="min"), own) == [Continue, Continue, NextPhase]
    assert kinds(Target(value=0.25, metric="loss"), scores(0.6, 0.75)) == [Continue, Stop]


def test_plateau_lowers_the_rate_down_to_a_share():
    found = decisions(Plateau(patience=2, factor=0.5, min_scale=0.2), scores(0.5, *[0.5] * 8))
    assert [type(d) for d in found] == [Continue, Continue, ScaleRate, Continue, ScaleRate, *[Continue] * 4]
    assert all(d.factor == 0.5 for d in found if isinstance(d, ScaleRate))
    assert "0.25 of the schedule's" in found[4].reason
    assert kinds(Plateau(patience=2), scores(0.5, 0.5, 0.6, 0.6, 0.7)) == [Continue] * 5


def losses(*values: float) -> list[Report]:
    return [report(i, train_loss=value) for i, value in enumerate(values)]


def test_divergence():
    assert kinds(Divergence(factor=3), losses(1.0, 0.5, 1.4, 1.6)) == [Continue] * 3 + [Stop]
    assert kinds(Divergence(factor=3), losses(1e-4, 0.2, 0.29, 0.31)) == [Continue] * 3 + [Stop]
    assert kinds(Divergence(), losses(math.nan)) == kinds(Divergence(), losses(math.inf)) == [Stop]
    skipped = [report(i, skipped=value) for i, value in enumerate((3, 8, 14))]
    assert kinds(Divergence(skipped=5), skipped) == [Continue, Continue, Stop]
    assert "6 steps were skipped" in decisions(Divergence(skipped=5), skipped)[-1].reason
    found = decisions(Divergence(action="rollback", rate_factor=0.1, rollbacks=2), losses(1.0, 9.0, 9.0, 1.0, 9.0))
    assert [type(d) for d in found] == [Continue, Rollback, Rollback, Continue, Stop]
    assert isinstance(found[1], Rollback) and found[1].factor == 0.1


def test_time_budget():
    rule = TimeBudget(minutes=1, seconds=30)
    assert rule.budget_seconds == 90 and TimeBudget(hours=0.5).budget_seconds == 1800
    assert kinds(rule, [report(seconds=89.9), report(seconds=90.0)]) == [Continue, Stop]


def test_target():
    assert kinds(Target(value=0.9), scores(0.8, math.nan, 0.9)) == [Continue, Continue, Stop]
    assert kinds(Target(value=0.9, end="phase"), scores(0.95)) == [NextPhase]


def test_problems_are_found_before_training():
    metrics = ("accuracy", "f1", "loss", "regret")
    assert EarlyStopping().problems(metrics) == TimeBudget(hours=1).problems(metrics) == []
    assert 'no number "acuracy"; did you mean "accuracy"' in EarlyStopping(metric="acuracy").problems(metrics)[0]
    assert "say whether" in Target(value=1.0, metric="regret").problems(metrics)[0]
    assert Target(value=1.0, metric="regret", better="max").problems(metrics) == []
    assert "leave it out" in Plateau(metric="loss", better="max").problems(metrics)[0]
    assert "no effect" in Plateau(better="max").problems(metrics)[0]
    with pytest.raises(ConfigError, match='no number "acuracy"'):
        EarlyStopping(metric="acuracy").decide(EarlyStopping().start(), report())
    with pytest.raises(ConfigError, match='no number "f1"'):
        EarlyStopping().decide(EarlyStopping().start(), report(metrics={"loss": 1.0}))


def test_wrong_settings_are_refused():
    for given, words in [
        ({"kind": "time_budget"}, "needs hours, minutes or seconds"),
        ({"kind": "divergence", "rollbacks": 5}, "no effect with action: stop"),
        ({"kind": "early_stopping", "patience": 0}, "greater than or equal to 1"),
        ({"kind": "plateau", "factor": 1.0}, "less than 1"),
        ({"kind": "early_stoping"}, 'did you mean "early_stopping"'),
    ]:
        with pytest.raises(ValidationError) as error:
            ADAPTER.validate_python(given)
        assert words in str(error.value)
