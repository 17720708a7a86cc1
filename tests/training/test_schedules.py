"""Schedules as plain functions: end points, warm-up, odd lengths, and optax's by name."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import numpy as np
import optax
import pytest
from pydantic import TypeAdapter, ValidationError

from jaxtune.core.component import OneOf
from jaxtune.training.schedules import SCHEDULES
from jaxtune.training.schedules.any_optax import OptaxSchedule
from jaxtune.training.schedules.base import Schedule, steps_of
from jaxtune.training.schedules.inverse_sqrt import InverseSqrt
from jaxtune.training.schedules.one_cycle import OneCycle
from jaxtune.training.schedules.piecewise import Piecewise
from jaxtune.training.schedules.shapes import Constant, Cosine, Exponential, Linear, Polynomial
from jaxtune.training.schedules.warmup_stable_decay import WarmupStableDecay

ADAPTER = TypeAdapter(Annotated[Schedule, OneOf(SCHEDULES)])

EXAMPLES = {
    "constant": {"rate": 1e-3, "warmup": 0.1},
    "linear": {"peak": 1e-3, "warmup": 10, "end": 1e-5},
    "cosine": {"peak": 1e-3, "warmup": 0.1},
    "polynomial": {"peak": 1e-3, "power": 3.0},
    "exponential": {"peak": 1e-3, "end": 1e-6, "warmup": 2},
    "inverse_sqrt": {"peak": 1e-3, "warmup": 0.1},
    "one_cycle": {"peak": 1e-3},
    "warmup_stable_decay": {"peak": 1e-3, "warmup": 0.1, "decay": 0.3},
    "piecewise": {"rates": [1e-3, 1e-4, 1e-5], "boundaries": [0.5, 80], "warmup": 3},
    "optax": {
        "name": "warmup_cosine_decay_schedule",
        "options": {"init_value": 0.0, "peak_value": 1e-3, "warmup_steps": 10, "decay_steps": "total"},
    },
}


def rates(schedule: Schedule, total: int) -> list[float]:
    return [schedule.at(step, total) for step in range(total)]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_each_is_finite_for_any_length_and_goes_on_after_the_end(kind):
    schedule = ADAPTER.validate_python({"kind": kind, **EXAMPLES[kind]})
    assert ADAPTER.validate_python(ADAPTER.dump_python(schedule)) == schedule
    assert hash(schedule) == hash(schedule.model_copy())
    for total in (11, 100) if kind == "optax" else (0, 1, 2, 3, 11, 100):
        for step in [*range(total + 3), 10 * total + 5]:
            rate = schedule.at(step, total)
            assert type(rate) is float and math.isfinite(rate) and 0 <= rate <= 1e-3 + 1e-9, (total, step)
        assert schedule.at(total + 50, total) == schedule.at(max(total - 1, 0), total)
    assert schedule.problems(100) == []
    assert max(rates(schedule, 100)) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("warmup", [0.1, 10])
def test_warm_up_climbs_in_a_line_to_the_peak(warmup):
    for schedule in (Constant(rate=1.0, warmup=warmup), Linear(peak=1.0, warmup=warmup), Cosine(peak=1.0, warmup=warmup)):
        found = rates(schedule, 100)
        np.testing.assert_allclose(found[:10], np.arange(1, 11) / 11)
        assert found[10] == 1.0 == max(found)


def test_curves():
    np.testing.assert_allclose(rates(Linear(peak=1.0, end=0.2), 4), [1.0, 0.8, 0.6, 0.4])
    np.testing.assert_allclose(rates(Cosine(peak=1.0), 4), 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)))
    np.testing.assert_allclose(rates(Polynomial(peak=1.0, power=2), 4), (1 - np.arange(4) / 4) ** 2)
    np.testing.assert_allclose(rates(Exponential(peak=1.0, end=1e-4), 4), [1, 1e-1, 1e-2, 1e-3])
    np.testing.assert_allclose(rates(InverseSqrt(peak=1.0, warmup=4), 400)[4::100], np.sqrt(4 / np.arange(4, 400, 100)))
    np.testing.assert_allclose(rates(Piecewise(rates=(1.0, 0.5, 0.1), boundaries=(0.5, 6)), 8), [1, 1, 1, 1, 0.5, 0.5, 0.1, 0.1])
    stable = rates(WarmupStableDecay(peak=1.0, warmup=2, decay=4, curve="linear"), 10)
    np.testing.assert_allclose(stable, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    found = rates(OneCycle(peak=2.0, rise=0.4, start=0.5, end=0.1), 10)
    assert found[0] == 1.0 and found[4] == 2.0 == max(found) and found[-1] < 0.35
    assert all(b > a for a, b in itertools.pairwise(found[:5])) and all(b < a for a, b in itertools.pairwise(found[4:]))


@pytest.mark.parametrize("kind", ["linear", "cosine", "polynomial", "exponential", "one_cycle"])
def test_the_last_step_still_learns(kind):
    options = EXAMPLES[kind] | ({"end": 1e-9} if kind == "exponential" else {"end": 0.0})
    assert ADAPTER.validate_python({"kind": kind, **options}).at(99, 100) > 0


def test_amounts():
    assert [steps_of(x, 200) for x in (0.0, 0.1, 0.999, 1, 50)] == [0, 20, 200, 1, 50]
    with pytest.raises(ValidationError, match="neither a fraction below 1 nor a whole number"):
        Linear(peak=1.0, warmup=1.5)


def test_problems_are_found_before_training():
    (found,) = Cosine(peak=1.0, warmup=100).problems(50)
    assert "100 steps, but the phase has only 50" in found
    assert "time scale" in " ".join(InverseSqrt(peak=1.0, warmup=0.01).problems(20))
    assert "together are more" in WarmupStableDecay(peak=1.0, warmup=0.5, decay=0.6).problems(100)[0]
    assert "outside" in Piecewise(rates=(1.0, 0.5), boundaries=(80,)).problems(50)[0]
    assert "rising" in Piecewise(rates=(1.0, 0.5, 0.1), boundaries=(0.5, 20)).problems(100)[0]
    assert "rise" in OneCycle(peak=1.0, rise=60).problems(50)[0]
    falls_below = OptaxSchedule(name="linear_schedule", options={"init_value": 1.0, "end_value": -1.0, "transition_steps": "total"})
    assert "expected a finite number of at least 0" in falls_below.problems(10)[0]
    for kind in SCHEDULES:
        if kind not in ("optax", "inverse_sqrt", "piecewise"):
            ADAPTER.validate_python({"kind": kind, **EXAMPLES[kind]}).problems(0)


def test_wrong_settings_are_refused():
    with pytest.raises(ValidationError, match="not a fraction of the peak"):
        Cosine(peak=1e-4, end=0.1)
    with pytest.raises(ValidationError, match="3 rates need 2 boundaries, found 1"):
        Piecewise(rates=(1.0, 0.5, 0.1), boundaries=(5,))
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValidationError):
            Linear(peak=bad)
    with pytest.raises(ValidationError, match='did you mean "cosine_decay_schedule"'):
        OptaxSchedule(name="cosine_decay", options={})
    with pytest.raises(ValidationError, match="needs the option decay_steps"):
        OptaxSchedule(name="cosine_decay_schedule", options={"init_value": 1.0})
    with pytest.raises(ValidationError, match='no option "alhpa"; did you mean "alpha"'):
        OptaxSchedule(name="cosine_decay_schedule", options={"init_value": 1.0, "decay_steps": "total", "alhpa": 0.1})


def test_optax_schedules_are_evaluated_as_they_are():
    schedule = OptaxSchedule(name="cosine_decay_schedule", options={"init_value": 1e-3, "decay_steps": "total", "alpha": 0.1})
    np.testing.assert_allclose(rates(schedule, 20), [float(optax.cosine_decay_schedule(1e-3, 20, 0.1)(i)) for i in range(20)], rtol=1e-6)
    steps = OptaxSchedule(name="piecewise_constant_schedule", options={"init_value": 1.0, "boundaries_and_scales": {5: 0.5}})
    np.testing.assert_allclose(rates(steps, 10), [1.0] * 5 + [0.5] * 5)
    assert rates(OptaxSchedule(name="constant_schedule", options={"value": 0.25}), 3) == [0.25] * 3
