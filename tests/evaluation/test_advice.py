"""Advice: every rule on a made run that has its fault, on one that nearly has it, and silence on a healthy one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_advice import GUESS, Made, generalising, learning

from jaxtune.core.errors import ConfigError
from jaxtune.evaluation import advice
from jaxtune.evaluation.advice import RULES, advise, write_advice
from jaxtune.evaluation.advice_file import read_advice
from jaxtune.evaluation.advice_rules.evidence import Evidence, Rule
from jaxtune.evaluation.record import RunRecord
from jaxtune.evaluation.report import write_report
from jaxtune.experiment import load_experiment

HEALTHY = Made()
FLAT = {"kind": "linear", "peak": 1e-3, "warmup": 0.0}
EARLY_STOP = {"stopping": [{"kind": "early_stopping", "patience": 1}]}
STOPPED = {"event": "decision", "step": 40, "decision": "NextPhase", "reason": "f1 has not improved on 0.9 for 1 evaluation (now 0.89)"}
COMPILED = {"event": "compiled", "memory": {"arguments": 1 << 30, "outputs": 0, "temporaries": 1 << 30, "aliased": 0}}
TPU = {"devices": ("TPU_0(process=0,(0,0,0,0))",), "events": [COMPILED]}


def labels(rare: int, tested: int) -> dict[str, Any]:
    return {"labels": {"train": {"a": 200, "b": 200, "c": rare}, "validation": {"a": 50, "b": 50, "c": tested}}}


def seen(count: int) -> dict[str, Any]:
    return {"copies": {"conflicts": 0, "seen_in_training": {"validation": count, "test": 0}}}


def suspects(count: int) -> dict[str, Any]:
    return {"labels": {"state": "done", "rows": 300, "suspects": count, "noise": count / 300, "probe_accuracy": 0.94}}


def parts(**changed: Any) -> Any:
    usual = {"embeddings": 0.5, "layers.0": 0.6, "layers.1": 0.7, "head": 1.0}
    return lambda done: usual | {name.replace("_", "."): value(done) for name, value in changed.items()}


# rule -> (a run with the fault, one that nearly has it, a word that the finding must hold, the change)
CASES: dict[str, tuple[Made, Made, str, str | None]] = {
    "leak": (Made(facts=seen(5)), Made(facts=seen(1)), "5 of 100 validation rows (5.0%)", None),
    "label_noise": (Made(checks=suspects(12)), Made(checks=suspects(8)), "12 of 300 training labels look wrong (4.0%", "task.loss.label_smoothing=0.1"),
    "rate_too_high": (
        Made(train=lambda done: 1.1 if done == 0 else 1.1 + 2 * math.exp(-5 * done), metric=lambda done: 0.34, validation=lambda done: 1.2),
        Made(train=lambda done: learning(done) + 0.1 * math.sin(9 * done)),
        "at a rate of up to 0.001",
        "phases.0.optimizer.schedule.peak=1.0e-04",
    ),
    "rate_too_low": (
        Made(train=lambda done: 1.12 - 0.03 * done, validation=lambda done: 1.1 - 0.02 * done, metric=lambda done: 0.34),
        Made(train=lambda done: 1.12 - 0.5 * done, validation=lambda done: 1.1 - 0.4 * done),
        "no better than guessing (1.099)",
        "phases.0.optimizer.schedule.peak=1.0e-02",
    ),
    "gradients_exploding": (
        Made(parts=parts(layers_1=lambda done: 0.01 * math.exp(14 * done))),
        Made(parts=parts(layers_1=lambda done: 0.1 * math.exp(3 * done))),
        "The gradient of layers.1 grew from",
        "phases.0.optimizer.schedule.peak=3.3e-04",
    ),
    "no_warmup": (
        Made(train=lambda done: learning(done) + (1.5 * math.exp(-60 * (done - 0.05) ** 2 / 0.05) if 0 < done < 0.2 else 0), schedule=FLAT),
        Made(schedule=FLAT),
        "at the full rate of 0.001",
        "phases.0.optimizer.schedule.warmup=0.1",
    ),
    "cut_texts": (
        Made(facts={"tokens": {"limit": 48, "possible": 512, "rows_cut": 0.6, "tokens_cut": 0.3, "quantiles": {"95%": 200}}}),
        Made(facts={"tokens": {"limit": 48, "possible": 512, "rows_cut": 0.19, "tokens_cut": 0.3, "quantiles": {"95%": 200}}}),
        "60% of the training texts are longer than 48 tokens; 30% of all tokens are cut off",
        "data.max_tokens=200",
    ),
    "imbalance": (
        Made(facts=labels(10, 12), recall=(0.95, 0.9, 0.4)),
        Made(facts=labels(10, 12), recall=(0.95, 0.9, 0.92)),
        "10 training examples, “a” 200 (20 times as many)",
        "task.loss.class_weights=balanced",
    ),
    "stopped_early": (
        Made(steps=40, phase={**EARLY_STOP, "steps": 100}, events=[STOPPED], facts={"phases": [{"steps": 100, "epoch_steps": 19}]}),
        Made(
            steps=40,
            phase={**EARLY_STOP, "steps": 100},
            events=[STOPPED],
            facts={"phases": [{"steps": 100, "epoch_steps": 19}]},
            validation=lambda done: 0.3 + done,
            metric=lambda done: 0.95 - 0.4 * done,
            train=lambda done: 0.5,
        ),
        "after 40 of 100 steps with a patience of 1 evaluation, although the validation loss was still falling",
        "phases.0.stopping.0.patience=5",
    ),
    "overfitting": (
        Made(validation=lambda done: generalising(done) + (1.2 * (done - 0.3) if done > 0.3 else 0)),
        Made(validation=lambda done: generalising(done) + (0.1 * (done - 0.3) if done > 0.3 else 0)),
        "above its lowest, while the training loss fell to 0.1",
        "model.dropout={hidden: 0.2, attention: 0.1, head: 0.2}",
    ),
    "best_at_end": (
        Made(best=100, metric=lambda done: 0.4 + 0.4 * done, validation=lambda done: 1.1 - 0.6 * done, train=lambda done: 1.1 - 0.7 * done),
        Made(best=100),
        "The best step, 100, is the last one; over the last third",
        "phases.0.steps=200",
    ),
    "batch_small": (
        Made(batch=2, noise=0.8, train=lambda done: 1.1 - 0.5 * done, validation=lambda done: 1.0 - 0.4 * done),
        Made(batch=2, noise=0.15),
        "With 2 examples a step",
        "data.batch_size=8",
    ),
    "evaluated_rarely": (Made(every=100), Made(every=25), "were evaluated 1 time.", "evaluation.every_steps=10"),
    "gradients_dead": (
        Made(parts=parts(layers_0=lambda done: 0.0)),
        Made(parts=parts(layers_0=lambda done: 1e-3)),
        "The gradient of layers.0 had a norm of at most 0 at all 10 evaluations",
        'phases.0.train=["*", "!layers.0.*"]',
    ),
    "idle_phase": (
        Made(earlier=True, train=lambda done: 0.5, validation=lambda done: 0.5, metric=lambda done: 0.8),
        Made(earlier=True),
        "changed nothing: accuracy 0.800 before it, 0.800 at its best",
        "phases.1.optimizer.schedule.peak=1.0e-02",
    ),
    "data_bound": (Made(wait=0.04), Made(wait=0.018), "Steps waited for data 40% of their time: 40 of 100 ms", "data.workers=3"),
    "padding": (
        Made(facts={"padding": {"widths": [256], "share": 0.7, "auto_widths": [32, 256], "auto_share": 0.12}}, data={"widths": [256], "max_tokens": 256}),
        Made(facts={"padding": {"widths": [64], "share": 0.45, "auto_widths": [64], "auto_share": 0.45}}),
        "70% of the places in the training batches are padding (widths 256)",
        "data.widths=auto",
    ),
    "memory_headroom": (
        Made(**TPU),
        Made(**TPU, facts={"device": {"memory_bytes": 9 << 29}}),
        "2.0 GiB of the 16.0 GiB",
        "data.batch_size=32",
    ),
}  # fmt: skip


def told(made: Made, folder: Path) -> dict[str, advice.Advice]:
    return {one.rule: one for one in advise(Evidence.read(made.write(folder)))}


def test_a_healthy_run_is_told_nothing(tmp_path: Path):
    assert told(HEALTHY, tmp_path / "run") == {}
    assert told(replace(HEALTHY, earlier=True), tmp_path / "two") == {}


def test_every_rule_has_a_case():
    assert [rule.name for rule in RULES] == list(CASES)
    assert all(rule.sign and rule.reason and set(rule.unless) <= set(CASES) for rule in RULES)


@pytest.mark.parametrize("rule", CASES)
def test_the_fault_is_named_with_its_figure_and_a_change_that_can_be_made(rule: str, tmp_path: Path):
    made, nearly, words, change = CASES[rule]
    found = told(made, tmp_path / "run")
    assert rule in found, f"found {found}"
    assert words in found[rule].saw and found[rule].why
    assert change is None or change in found[rule].change
    assert set(found) <= {rule, "best_at_end"} or rule in ("imbalance", "overfitting"), found
    load_experiment(tmp_path / "run" / "resolved.yaml", found[rule].change)  # raises what does not fit
    assert rule not in told(nearly, tmp_path / "nearly")


def test_a_run_that_diverged_is_told_a_lower_rate(tmp_path: Path):
    state = {"status": "failed", "exit_code": 71, "reason": "loss or gradients were not finite"}
    found = told(replace(HEALTHY, state=state, train=lambda done: 1.1 if done < 0.5 else math.nan), tmp_path / "run")
    assert found["rate_too_high"].change == ("phases.0.optimizer.schedule.peak=1.0e-04",)
    assert "stopped being finite at step 100" in found["rate_too_high"].saw


def test_a_model_that_died_in_its_first_steps_is_not_told_a_higher_rate(tmp_path: Path):
    found = told(
        replace(
            HEALTHY,
            train=lambda done: 1.25 if done == 0 else 2.2 if done < 0.02 else 1.1,
            validation=lambda done: 1.1,
            metric=lambda done: 0.34,
        ),
        tmp_path / "run",
    )
    assert set(found) == {"rate_too_high"} and found["rate_too_high"].change == ("phases.0.optimizer.schedule.peak=1.0e-04",)


@pytest.mark.parametrize(("count", "agreed"), [(30, 0.8), (20, 0.86)])
def test_where_classes_overlap_suspects_are_no_wrong_labels(count: int, agreed: float, tmp_path: Path):
    checks = suspects(count)
    checks["labels"]["probe_accuracy"] = agreed
    assert "label_noise" not in told(replace(HEALTHY, checks=checks), tmp_path / "run")
    checks["labels"]["suspects"] = 50
    assert "label_noise" in told(replace(HEALTHY, checks=checks), tmp_path / "many"), "nearly all that the probe disagrees with"


def test_where_guessing_is_not_defined_the_run_is_held_against_its_beginning_and_a_branch_is_not(tmp_path: Path):
    flat = replace(CASES["rate_too_low"][0], task={"problem": "regression", "metrics": ["mean_squared_error"]}, facts={"labels": None})
    folder = flat.write(tmp_path / "run")
    assert "no better than where the run began (1." in {one.rule: one for one in advise(Evidence.read(folder))}["rate_too_low"].saw
    (folder / "lineage.json").write_text("{}")
    assert "rate_too_low" not in {one.rule for one in advise(Evidence.read(folder))}


@pytest.mark.parametrize(("values", "higher"), [((0.2, 0.3, 0.5), True), ((0.5, 0.3, 0.2), False)])
def test_the_better_direction_of_a_metric_of_ones_own(values: tuple[float, ...], higher: bool, tmp_path: Path):
    record = RunRecord.read(HEALTHY.write(tmp_path / "run"))
    rows = [{"step": step, "split": "validation", "mine": value, "best": True} for step, value in enumerate(values)]
    experiment = {**record.experiment, "task": {**record.task, "best": "mine"}}
    assert Evidence.of(replace(record, rows=rows, experiment=experiment)).higher_is_better == higher
    assert not Evidence.of(replace(record, experiment={"task": {"best": "loss"}})).higher_is_better


def test_a_lucky_first_batch_at_a_tiny_rate_is_no_rate_that_is_too_high(tmp_path: Path):
    flat = replace(CASES["rate_too_low"][0], train=lambda done: GUESS if done == 0 else 1.3 - 0.05 * done, noise=0.02)
    assert set(told(flat, tmp_path / "run")) & {"rate_too_high", "rate_too_low"} == {"rate_too_low"}


def test_near_copies_are_a_leak_that_no_setting_mends(tmp_path: Path):
    near = {"near_duplicates": {"state": "done", "rows": 500, "pairs": 9, "near_training": {"validation": 0, "test": 7}}}
    found = told(replace(HEALTHY, checks=near), tmp_path / "run")["leak"]
    assert "7 of 100 test rows (7.0%) are near copies" in found.saw and found.change == () and "near_duplicates.parquet" in found.why


def test_a_guess_is_the_entropy_of_the_classes(tmp_path: Path):
    assert Evidence.read(HEALTHY.write(tmp_path / "run")).guess == pytest.approx(GUESS)
    skewed = Evidence.read(replace(HEALTHY, facts=labels(100, 3)).write(tmp_path / "skewed"))
    assert skewed.guess == pytest.approx(0.4 * math.log(2.5) * 2 + 0.2 * math.log(5))


def test_the_standard_error_of_an_accuracy(tmp_path: Path):
    evidence = Evidence.read(HEALTHY.write(tmp_path / "run"))
    assert evidence.noise(0.8) == pytest.approx(math.sqrt(0.8 * 0.2 / 100)) and evidence.noise(1.0) == pytest.approx(0.01)


def test_a_run_of_an_earlier_version_without_facts(tmp_path: Path):
    folder = CASES["overfitting"][0].write(tmp_path / "run")
    for name in ("facts.json", "checks.json", "environment.json"):
        (folder / name).unlink()
    assert [one.rule for one in advise(Evidence.read(folder))] == ["overfitting"]


def test_a_rule_that_fails_costs_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def broken(evidence: Evidence) -> None:
        raise KeyError("x")

    monkeypatch.setattr(advice, "RULES", (Rule("broken", "", "", broken), *RULES))
    assert [one.rule for one in advise(Evidence.read(CASES["padding"][0].write(tmp_path / "run")))] == ["padding"]
    assert "the advice rule broken failed" in caplog.text


@pytest.mark.parametrize("rule", CASES)
def test_no_rule_fails_on_its_cases(rule: str, tmp_path: Path):
    for number, made in enumerate(CASES[rule][:2]):
        evidence = Evidence.read(made.write(tmp_path / str(number)))
        for one in RULES:
            one.check(evidence)


def test_the_file_the_report_and_what_a_terminal_shows(tmp_path: Path):
    folder = CASES["data_bound"][0].write(tmp_path / "run")
    (one,) = write_advice(folder)
    assert read_advice(folder) == [one] and one.line.endswith("Try data.workers=3.")
    assert json.loads((folder / "advice.json").read_text())["rules"] == [rule.name for rule in RULES]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "What to try next" in page and "<code>data.workers=3</code>" in page and page.index('id="advice"') < page.index('id="numbers"')
    assert "What to try next" not in write_report(HEALTHY.write(tmp_path / "healthy")).read_text(encoding="utf-8")
    assert read_advice(tmp_path / "nowhere") == ()
    with pytest.raises(ConfigError):
        write_advice(tmp_path)
