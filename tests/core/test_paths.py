"""The pattern language: what each sign picks, that the last match decides, and that no pattern is idle in silence."""

from __future__ import annotations

import pytest

from jaxtune.core.errors import ConfigError
from jaxtune.core.paths import compile_pattern, matches, select

PATHS = ("embeddings.token.embedding", *(f"layers.{i}.{part}" for i in range(12) for part in ("q.kernel", "q.bias")), "head.out.kernel")


@pytest.mark.parametrize(
    ("pattern", "picked"),
    [
        ("*", PATHS),
        ("head.*", ("head.out.kernel",)),
        ("*.bias", tuple(p for p in PATHS if p.endswith(".bias"))),
        ("layers.3.*", ("layers.3.q.kernel", "layers.3.q.bias")),
        ("layers.1.q.kernel", ("layers.1.q.kernel",)),
        ("layers.{9-11}.*.bias", ("layers.9.q.bias", "layers.10.q.bias", "layers.11.q.bias")),
        ("layers.{1-1}.q.bias", ("layers.1.q.bias",)),
        ("{head, embeddings}.*", ("embeddings.token.embedding", "head.out.kernel")),
        ("layers.{0,11}.q.{bias}", ("layers.0.q.bias", "layers.11.q.bias")),
    ],
)
def test_what_a_pattern_picks(pattern: str, picked: tuple[str, ...]) -> None:
    assert select(PATHS, [pattern]) == picked


def test_everything_else_is_literal() -> None:
    for path, pattern in (("layersX3", "layers.3"), ("aab", "a+b"), ("layers.3.q", "layers.3"), ("x.layers.3", "layers.3"), ("ab", "a?b")):
        assert not matches(path, [pattern])
    assert matches("a+b[0]", ["a+b[0]"])
    assert not matches("head.out\n", ["head.out"])


def test_the_last_match_decides() -> None:
    assert matches("layers.3.q.bias", ["*"])
    assert not matches("layers.3.q.bias", ["*", "!*.bias"])
    assert matches("layers.3.q.bias", ["*", "!*.bias", "layers.3.*"])
    assert not matches("layers.3.q.bias", ["!layers.4.*"]), "nothing is picked to begin with"
    assert select(PATHS, ["layers.{0-1}.*", "!*.bias"]) == ("layers.0.q.kernel", "layers.1.q.kernel")


def test_order_is_that_of_the_paths() -> None:
    assert select(PATHS, ["head.*", "embeddings.*"]) == ("embeddings.token.embedding", "head.out.kernel")


def test_idle_patterns_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        select(PATHS, ["layer.*", "*", "!heads.*"], "phases.train: pattern")
    first, second = caught.value.problems
    assert 'phases.train: pattern "layer.*" matches no parameter' in first and 'did you mean "layers.*"?' in first
    assert '"!heads.*"' in second and "parameters start with: embeddings.*, head.*, layers.*" in second


@pytest.mark.parametrize(
    ("pattern", "reason"), [("layers.{4-2}.*", "range {4-2} is empty"), ("a{b", 'unbalanced "{"'), ("a}", 'unbalanced "}"')]
)
def test_bad_patterns(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="pattern") as caught:
        compile_pattern(pattern)
    assert reason in str(caught.value) and pattern in str(caught.value)
