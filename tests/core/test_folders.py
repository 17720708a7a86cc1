from __future__ import annotations

from pathlib import Path

import pytest

from jaxtune.core.folders import cache_folder


def test_cache_folder_moves_with_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JAXTUNE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("compiled") == Path.home() / ".cache/jaxtune/compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("compiled") == Path("/x/jaxtune/compiled")
    monkeypatch.setenv("JAXTUNE_CACHE", "/y")
    assert cache_folder("compiled") == Path("/y/compiled")
