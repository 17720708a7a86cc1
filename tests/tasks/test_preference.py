"""Preference losses against the papers' formulas in float64, and what the reference is."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language
from pydantic import ValidationError

from jaxtune.core.errors import ConfigError
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.transforms.tokenize import Tokenizer
from jaxtune.experiment import Experiment
from jaxtune.prepare import prepare
from jaxtune.reference import add_read
from jaxtune.session import Session
from jaxtune.tasks.preference import Preference
from jaxtune.tasks.reading import read

SUMS = np.array([[-12.0, -15.5], [-3.0, -2.0], [-0.5, -40.0]])
REFERENCE = np.array([[-13.0, -15.0], [-3.5, -2.5], [-4.0, -20.0]])
TOKENS = np.array([[6.0, 7.0], [2.0, 1.0], [3.0, 11.0]])


def losses(**settings: Any) -> tuple[np.ndarray, np.ndarray]:
    told = {"log_probability": jnp.asarray(SUMS, jnp.float32), "tokens": jnp.asarray(TOKENS, jnp.float32)}
    loss, reward = Preference(**settings).losses(told, {"reference": jnp.asarray(REFERENCE, jnp.float32)})
    return np.asarray(loss, np.float64), np.asarray(reward, np.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_equation_7(beta: float, smoothing: float) -> None:
    """-log sigmoid(beta log(pi_w / ref_w) - beta log(pi_l / ref_l)); smoothed as in its conservative form."""
    loss, reward = losses(beta=beta, label_smoothing=smoothing)
    margin = beta * (SUMS[:, 0] - REFERENCE[:, 0]) - beta * (SUMS[:, 1] - REFERENCE[:, 1])
    expected = -(1 - smoothing) * np.log(sigmoid(margin)) - smoothing * np.log(sigmoid(-margin))
    np.testing.assert_allclose(loss, expected, rtol=2e-6)
    np.testing.assert_allclose(reward, beta * (SUMS - REFERENCE), rtol=1e-6)


def test_ipo_is_equation_17_with_means_over_tokens() -> None:
    """(h_w - h_l - 1 / (2 tau))^2, h = log(pi / ref) / tokens as TRL takes it."""
    loss, _ = losses(loss="ipo", beta=0.4)
    h = (SUMS - REFERENCE) / TOKENS
    np.testing.assert_allclose(loss, (h[:, 0] - h[:, 1] - 1 / (2 * 0.4)) ** 2, rtol=2e-6)


def test_orpo_is_equation_6() -> None:
    """-log p_w / m - lambda log sigmoid(log(odds_w / odds_l)), p the geometric mean over tokens, odds = p / (1 - p)."""
    loss, reward = losses(loss="orpo", beta=0.3)
    p = np.exp(SUMS / TOKENS)
    odds = p / (1 - p)
    np.testing.assert_allclose(loss, -np.log(p[:, 0]) - 0.3 * np.log(sigmoid(np.log(odds[:, 0] / odds[:, 1]))), rtol=2e-6)
    np.testing.assert_allclose(reward, np.log(odds), rtol=1e-5)


def test_a_row_that_only_fills_up_is_finite() -> None:
    told = {"log_probability": jnp.zeros((1, 2)), "tokens": jnp.zeros((1, 2))}
    for loss in ("dpo", "ipo", "orpo"):
        found, _ = Preference(loss=loss).losses(told, {"reference": jnp.zeros((1, 2))})
        assert np.isfinite(found).all()


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match="label_smoothing: has no effect on ipo"):
        Preference(loss="ipo", label_smoothing=0.1)
    with pytest.raises(ConfigError, match=r"data.packing: an example of Preference has a row for itself"):
        Experiment.model_validate(tiny_language.experiment({"kind": "preference"}, data={"packing": "best_fit"}))


# -- on a model -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_language.write_model(tmp_path / "model")
    tiny_language.write_data(tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def open_session(task: dict[str, Any], **more: Any) -> Session:
    experiment = Experiment.model_validate(tiny_language.experiment(task, **more))
    session = Session.open(prepare(experiment), experiment.mesh.build())
    session.check()
    return session


def by_row(session: Session, split: str = "train") -> dict[int, np.ndarray]:
    """log_probability of each example of a split by the base."""
    plan = session.prepared.plan(split, divisor=session.placement.batch_ways, training=False)
    with session.feed(split, plan, stop=plan.steps()) as feed:
        found = session.evaluator(session.blueprint).infer(*session.load_base(), feed)
    return dict(zip(found.ids.tolist(), found.more["log_probability"], strict=True))


@pytest.mark.parametrize("as_chat", [False, True])
def test_a_pair_in_one_row_is_two_rows(home: Path, as_chat: bool) -> None:
    pairs = by_row(open_session({"kind": "preference", "as_chat": as_chat}))
    for side, column in enumerate(("chosen", "rejected")):
        alone = by_row(open_session({"kind": "causal_lm", "prompt": "prompt", "completion": column, "as_chat": as_chat}))
        both = alone.keys() & pairs.keys()  # other columns, other copies: the split is another one
        assert len(both) > 8
        for row in both:
            assert pairs[row][side] == pytest.approx(float(alone[row]), rel=1e-5)


def test_the_reference_is_the_bases_own_answer_and_step_0_is_ln_2(home: Path) -> None:
    session = open_session({"kind": "preference", "beta": 0.3})
    expected = by_row(session)
    add_read(session)
    held = session.prepared.splits["train"].columns["reference"]
    for row, value in expected.items():
        np.testing.assert_array_equal(held[row], value)
    for split in ("train", "validation"):
        found = session.evaluate(split, session.blueprint, *session.load_base())
        assert found.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert found.metrics["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    (entry,) = (home / "cache" / "reference").iterdir()
    again = open_session({"kind": "preference", "loss": "ipo", "beta": 0.9})  # another loss, the same reference
    add_read(again)
    assert [entry] == list((home / "cache" / "reference").iterdir())


def test_orpo_reads_nothing_beforehand(home: Path) -> None:
    session = open_session({"kind": "preference", "loss": "orpo"})
    add_read(session)
    assert "reference" not in session.prepared.splits["train"].columns and not (home / "cache" / "reference").exists()


def test_rows_are_up_to_two_texts_wide(home: Path) -> None:
    session = open_session({"kind": "preference"}, data={"max_tokens": 20})
    lengths = session.prepared.splits["train"].lengths
    assert lengths is not None and lengths.max() > 20 and session.prepared.row_limit == 40
    assert session.plan(0).widths is not None and session.plan(0).widths[-1] <= 40
    with pytest.raises(ConfigError, match="the last must be the longest row, 40 tokens"):
        open_session({"kind": "preference"}, data={"max_tokens": 20, "widths": [20]})


def test_positions_begin_again_in_the_second_answer(home: Path) -> None:
    row = open_session({"kind": "preference"}).prepared.splits["train"].row(0)
    first = np.flatnonzero(row["segment_ids"] == 2)[0]
    assert row["positions"][first] == 0 and row["token_weight"][first] == 0 and row["token_weight"][0] == 0
    np.testing.assert_array_equal(row["positions"], np.concatenate([np.arange(first), np.arange(len(row["tokens"]) - first)]))


def test_is_highest_is_the_argmax(home: Path) -> None:
    session = open_session({"kind": "causal_lm", "messages": "messages", "train_on": "all"})
    params, variables = session.load_base()
    with session.feed("train", session.plan(0), 0, 1, training=True) as feed:
        batch = dict(next(feed).arrays)
    with session.placement.active():
        model: Any = session.blueprint.build(params, variables)
        reading = read(model, batch)
        found, logits = reading.loss(), np.asarray(model.head.logits(model, reading.hidden))
    there = np.asarray(reading.weight) != 0
    right = logits.argmax(-1) == np.asarray(reading.targets)
    np.testing.assert_array_equal(np.asarray(found.is_highest)[there], right[there])
    assert not np.asarray(found.is_highest)[~there].any()


def test_answers_that_are_the_same_once_cut_prefer_nothing(home: Path) -> None:
    """Nor do those that a template writes alike."""
    pairs = [("same beginning", "same start"), ("sun " * 40 + "moon", "sun " * 40 + "star")]
    records = [{"prompt": "a", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
    processor = Processor(tokenizer=Tokenizer.load(home / "model"))
    found = Preference().encode(records, (), processor, Limits(max_tokens=48))  # type: ignore[arg-type]
    assert found.kept.tolist() == [0] and found.report["targets"].untrained == 1


def test_a_template_gets_the_date_and_the_variables(home: Path) -> None:
    (home / "model" / "chat_template.jinja").write_text(
        "{{ strftime_now('%Y') }}{{ mood }}{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    tokenizer = Tokenizer.load(home / "model")
    records = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    task = Preference(as_chat=True, today=datetime.date(2026, 1, 31), template_variables={"mood": "calm"})
    row = task.encode(records, (), Processor(tokenizer=tokenizer), Limits(max_tokens=64)).examples.row(0)  # type: ignore[arg-type]
    assert tokenizer.decode(row["tokens"]) == "".join(f"2026calm<|im_start|>a<|im_end|><|im_start|>{answer}<|im_end|>" for answer in "bc")
    for setting in ({"today": "2026-01-31"}, {"template_variables": {"mood": "calm"}}):
        with pytest.raises(ValidationError, match="has no place without as_chat"):
            Preference(**setting)
