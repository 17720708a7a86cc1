from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from toy_experiment import Toy

from jaxtune.config.read import read
from jaxtune.core.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that messages name files as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def problems(here: Path) -> Callable[..., list[str]]:
    """The problems of an experiment with this text."""

    def find(text: str, overrides: Sequence[str] = ()) -> list[str]:
        (here / "x.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read("x.yaml", overrides, Toy)
        return list(caught.value.problems)

    return find


@pytest.fixture
def toy(here: Path) -> Callable[..., Toy]:
    def make(text: str, overrides: Sequence[str] = ()) -> Toy:
        (here / "x.yaml").write_text(text)
        return read("x.yaml", overrides, Toy)

    return make
