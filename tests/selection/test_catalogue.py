from __future__ import annotations

import math
import re
from datetime import date
from typing import Any

import pytest

from jaxtune.models import FAMILIES
from jaxtune.models.family import family_class
from jaxtune.models.hub import ClassDefaults
from jaxtune.models.load import Base
from jaxtune.selection.candidates import encoder_parameters
from jaxtune.selection.catalogue import load_catalogue

CATALOGUE = load_catalogue()
BIG_VOCABULARY = 250_002
SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
# What config.json says where it differs from the family's usual numbers.
CONFIGS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {},
    "google-bert/bert-base-multilingual-cased": {"vocab_size": 119_547},
    "distilbert/distilbert-base-uncased": {},
    "FacebookAI/roberta-base": {"max_position_embeddings": 514, "type_vocab_size": 1},
    "FacebookAI/xlm-roberta-base": {"max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": BIG_VOCABULARY},
    "sentence-transformers/all-MiniLM-L6-v2": {**SMALL, "num_hidden_layers": 6},
    "sentence-transformers/all-MiniLM-L12-v2": SMALL,
    "BAAI/bge-small-en-v1.5": SMALL,
    "BAAI/bge-base-en-v1.5": {},
    "intfloat/multilingual-e5-small": {**SMALL, "vocab_size": 250_037},
    "google/vit-base-patch16-224-in21k": {},
    "facebook/deit-tiny-patch16-224": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "facebook/deit-small-patch16-224": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "facebook/deit-base-distilled-patch16-224": {},
    "microsoft/resnet-18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "microsoft/resnet-50": {},
}


def test_there_is_one_row_per_model_and_a_date():
    names = [model.id for model in CATALOGUE.models]
    assert len(names) == len(set(names)) and {model.domain for model in CATALOGUE.models} == {"text", "image"}
    assert date.fromisoformat(CATALOGUE.revised) <= date.today()
    assert sorted(CATALOGUE.of("text") + CATALOGUE.of("image"), key=lambda m: m.id) == sorted(CATALOGUE.models, key=lambda m: m.id)


@pytest.mark.parametrize("model", CATALOGUE.models, ids=lambda model: model.id)
def test_facts_hold_together(model: Any):
    """Parameters are those of the architecture, counted from its config by the family itself."""
    assert model.model_type in FAMILIES
    cls = family_class(model.model_type)
    assert cls.domain == model.domain
    family = cls(CONFIGS[model.id], ClassDefaults(model.model_type))
    counted = encoder_parameters(Base(family, None, model.id))
    assert counted == pytest.approx(model.parameters, rel=0.015)
    assert (model.context is None) == (model.domain == "image")
    assert model.context is None or model.context == family.max_tokens
    assert model.documentation.endswith(model.id)
    assert all(when is None or re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", when) for when in (model.released, model.last_update))
    if model.benchmark is not None:
        assert model.benchmark.source.startswith("https://") and math.isfinite(model.benchmark.value)


def test_a_row_is_found_by_id_and_revision():
    assert CATALOGUE.find("FacebookAI/roberta-base@main").model_type == "roberta"  # type: ignore[union-attr]
    assert CATALOGUE.find("no/such") is None
