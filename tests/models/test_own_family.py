"""A family outside the table, by `module:Class`: for a person who writes it, and never because a checkpoint says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxtune.core.errors import ModelError
from jaxtune.models.bert import Bert
from jaxtune.models.family import family_class
from jaxtune.models.hub import ClassDefaults
from jaxtune.models.load import open_base


def test_an_own_class_serves_a_new_model() -> None:
    assert family_class("jaxtune.models.bert:Bert", own=True) is Bert
    assert isinstance(open_base({"family": "jaxtune.models.bert:Bert", "config": {"hidden_size": 12}}).family, Bert)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("bertt", 'did you mean "bert"'),
        ("jaxtune.models.bertt:Bert", "no module named jaxtune.models.bertt"),
        ("jaxtune.models.bert:Brt", "jaxtune.models.bert has no Brt"),
        ("jaxtune.models.bert:Block", "is no model family; expected a subclass of jaxtune.Family"),
    ],
)
def test_what_is_no_family(where: str, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        family_class(where, own=True)
    assert text in str(caught.value)


def test_a_checkpoint_cannot_name_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "trap:Model"}))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match='model_type "trap:Model" has no family'):
        open_base(str(tmp_path))


def test_transformers_need_not_know_it() -> None:
    assert dict(ClassDefaults("nobody_knows_it")) == {}
