"""What families assume for absent config.json keys is what transformers' classes assume."""

from __future__ import annotations

import pytest

from jaxtune.models import FAMILIES
from jaxtune.models.family import family_class
from jaxtune.models.hub import ClassDefaults


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_assumed_values_are_those_of_transformers(model_type: str) -> None:
    family = family_class(model_type)
    defaults = ClassDefaults(model_type)
    assert set(family.assumed) <= family.handled
    for key, value in family.assumed.items():
        assert defaults.get(key, value) == value, key
