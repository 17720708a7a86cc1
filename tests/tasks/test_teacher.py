"""Distillation against the plain formula on whole logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_language

from jaxtune.core.errors import ConfigError
from jaxtune.experiment import Experiment
from jaxtune.prepare import prepare
from jaxtune.reference import add_read, check_read
from jaxtune.session import Session


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_language.write_model(tmp_path / "model")
    tiny_language.write_model(tmp_path / "teacher", 1, hidden_size=24, num_attention_heads=2, num_key_value_heads=2)
    tiny_language.write_data(tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def open_session(teacher: dict[str, Any] | None, base: str = "model", **data: Any) -> Session:
    task: dict[str, Any] = {"kind": "causal_lm", "messages": "messages", "teacher": teacher}
    values = tiny_language.experiment(task, data=data)
    values["model"]["base"] = base
    experiment = Experiment.model_validate(values)
    return Session.open(prepare(experiment), experiment.mesh.build(jax.devices()[:1]))


def first_batch(session: Session) -> dict[str, jax.Array]:
    with session.feed("train", session.plan(0), 0, 1, training=True) as feed:
        return dict(next(feed).arrays)


def logits_of(session: Session, batch: dict[str, jax.Array]) -> np.ndarray:
    model: Any = session.blueprint.build(*session.load_base())
    return np.asarray(model.head.logits(model, model(batch).tokens), np.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("packing", ["none", "best_fit"])
@pytest.mark.parametrize("top_k", [7, 400])
def test_the_loss_is_the_plain_mixture(home: Path, packing: str, top_k: int) -> None:
    """(1 - w) cross-entropy + w T^2 KL(teacher || model), over the teacher's top k and, as one, the other tokens."""
    temperature, share = 1.7, 0.3
    session = open_session({"base": "teacher", "top_k": top_k, "temperature": temperature, "weight": share}, packing=packing)
    add_read(session)
    batch = first_batch(session)
    ours, theirs = logits_of(session, batch), logits_of(open_session(None, "teacher"), batch)
    targets = np.asarray(batch["tokens"])[:, 1:]
    weight = (np.asarray(batch["token_weight"]) * np.asarray(batch["loss_weight"])[:, None])[:, 1:]
    entropy = -np.take_along_axis(log_softmax(ours), np.pad(targets, ((0, 0), (0, 1)))[..., None], 2)[:, :-1, 0]
    p, q = log_softmax(theirs / temperature)[:, :-1], log_softmax(ours / temperature)[:, :-1]
    order = np.argsort(-p, -1)[..., :top_k]
    p, q = np.take_along_axis(p, order, 2), np.take_along_axis(q, order, 2)
    distance = (np.exp(p) * (p - q)).sum(-1)
    if top_k < 400:
        rest, left = 1 - np.exp(p).sum(-1), 1 - np.exp(q).sum(-1)
        distance += rest * np.log(rest / left)
    expected = ((1 - share) * entropy + share * temperature**2 * distance)[weight > 0]

    model = session.blueprint.build(*session.load_base())
    found = session.prepared.task.objective(model, batch, None)
    assert float(found.weight) == weight.sum()
    assert float(found.total) == pytest.approx((expected * weight[weight > 0]).sum(), rel=2e-5)


def test_a_model_that_is_its_teacher_is_at_distance_0(home: Path) -> None:
    session = open_session({"base": "model", "top_k": 16, "weight": 1.0})
    add_read(session)
    found = session.prepared.task.objective(session.blueprint.build(*session.load_base()), first_batch(session), None)
    assert float(found.mean) == pytest.approx(0.0, abs=1e-5)


def test_only_targets_are_kept_and_only_of_training_rows(home: Path) -> None:
    session = open_session({"base": "teacher", "top_k": 5})
    add_read(session)
    train, other = session.prepared.splits["train"], session.prepared.splits["validation"]
    assert "teacher_tokens" not in other.columns
    row = train.row(3)
    there = row["token_weight"] > 0
    assert row["teacher_tokens"].shape == (len(row["tokens"]), 5)
    assert (np.exp(row["teacher_log_probability"][there]).sum(-1) <= 1).all() and not row["teacher_log_probability"][~there].any()
    held: Any = train.columns["teacher_tokens"]
    assert held.values.lengths.sum() == sum((train.row(i)["token_weight"] > 0).sum() for i in range(len(train)))


def test_teachers_that_do_not_fit_are_refused(home: Path) -> None:
    other = home / "other"
    tiny_language.write_model(other, 2)
    text = (other / "tokenizer.json").read_text()
    changed = json.loads(text)
    first, second = list(changed["model"]["vocab"])[10:12]
    vocabulary = changed["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=r"task.teacher: the tokenizer of other is not that of model"):
        check_read(open_session({"base": "other"}))
    with pytest.raises(ConfigError, match=r'task.teacher.base: "nowhere" is no folder'):
        check_read(open_session({"base": "nowhere"}))
    with pytest.raises(ConfigError, match=r"task.teacher: top_k is 500, the vocabulary has 400 tokens"):
        check_read(open_session({"base": "teacher", "top_k": 500}))
    tiny_language.write_model(home / "short", 2, max_position_embeddings=32)
    with pytest.raises(ConfigError, match=r"short reads at most 32 tokens, rows have up to 64"):
        check_read(open_session({"base": "short"}))
