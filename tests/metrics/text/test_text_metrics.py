"""Text metrics against recorded values of the usual packages, and against cases that a person can work out."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from jaxtune.core.component import OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.metrics.text import TEXT_METRICS
from jaxtune.metrics.text.answers import ExactMatch, TokenF1
from jaxtune.metrics.text.base import TextMetric
from jaxtune.metrics.text.chrf import Chrf
from jaxtune.metrics.text.function import Function
from jaxtune.metrics.text.rouge import Rouge, longest_common

RECORDED = json.loads((Path(__file__).resolve().parents[2] / "references" / "text_scores.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["generated"][:20])
@pytest.mark.parametrize("metric", [Rouge(), Chrf()], ids=["rouge", "chrf"])
def test_they_equal_the_usual_packages(metric: TextMetric, case: dict[str, Any]) -> None:
    found = metric.score(case["generated"], case["reference"])
    assert found == pytest.approx({name: case[name] for name in metric.names}, abs=1e-12)


def test_rouge_by_hand() -> None:
    """Lin 2004, section 3: one sentence has the words in order, the other has not."""
    reference = "police killed the gunman"
    right, wrong = (Rouge().score(text, reference) for text in ("police kill the gunman", "the gunman kill police"))
    assert (right["rouge_l"], wrong["rouge_l"]) == (0.75, 0.5)
    assert right["rouge_1"] == wrong["rouge_1"] == 0.75 and (right["rouge_2"], wrong["rouge_2"]) == (1 / 3, 1 / 3)


def test_rouge_reads_other_alphabets() -> None:
    assert Rouge().score("Привет, мир", "привет мир!") == {"rouge_1": 1.0, "rouge_2": 1.0, "rouge_l": 1.0}
    assert Rouge().score("café", "caf")["rouge_1"] == 0.0


def by_table(first: Sequence[str], second: Sequence[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, j in itertools.product(range(len(first)), range(len(second))):
        table[i + 1][j + 1] = table[i][j] + 1 if first[i] == second[j] else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_the_longest_common_subsequence() -> None:
    dice = random.Random(0)
    for _ in range(300):
        first, second = (dice.choices("abcd", k=dice.randint(0, 90)) for _ in range(2))
        assert longest_common(first, second) == by_table(first, second)


@pytest.mark.parametrize(
    ("generated", "reference", "exact", "f1"),
    [
        ("The Apple!", "apple", 1, 1),
        ("an apple a day", "apple day", 1, 1),
        ("red green", "green blue red", 0, 0.8),
        ("red red red", "red", 0, 0.5),
        ("", "red", 0, 0),
        ("the", "...", 1, 1),
        ("theatre", "atre", 0, 0),
    ],
)
def test_answers_as_squad_compares_them(generated: str, reference: str, exact: float, f1: float) -> None:
    assert ExactMatch().score(generated, reference) == {"exact_match": exact}
    assert TokenF1().score(generated, reference) == {"token_f1": pytest.approx(f1)}


def test_exact_match_to_the_letter() -> None:
    assert ExactMatch(plain=False).score("Apple", "apple") == {"exact_match": 0.0}
    assert ExactMatch(plain=False).score("apple", "apple") == {"exact_match": 1.0}


# -- one's own --------------------------------------------------------------------------------------------------------------


def shorter(generated: str, reference: str) -> bool:
    return len(generated) < len(reference)


def wordless(generated: str, reference: str) -> str:
    return "no number"


HERE = __name__


def test_a_function_of_ones_own() -> None:
    metric = Function(function=f"{HERE}:shorter")
    assert metric.names == ("shorter",) and metric.score("a", "abc") == {"shorter": 1.0}
    assert Function(function=f"{HERE}:shorter", name="brevity").score("abc", "a") == {"brevity": 0.0}


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("nowhere.at_all:score", "no module named nowhere"),
        (f"{HERE}:absent", "has no absent"),
        (f"{HERE}:HERE", "is a str; expected a function of two texts"),
        ("shorter", "expected package.module:function"),
    ],
)
def test_what_is_no_function_is_refused(where: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Function(function=where)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="wordless gave 'no number' for a text; expected a finite number"):
        Function(function=f"{HERE}:wordless").score("a", "b")


# -- the table --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEXT_METRICS)
def test_every_metric_of_the_table(kind: str) -> None:
    choice: Any = TypeAdapter(Annotated[TextMetric, OneOf(TEXT_METRICS)])
    written = {"kind": kind, **({"function": f"{HERE}:shorter"} if kind == "function" else {})}
    metric = choice.validate_python(written)
    assert choice.validate_python(choice.dump_python(metric)) == metric
    for generated, reference in itertools.product(("", "a word", "Wörter und 数字 12"), repeat=2):
        found = metric.score(generated, reference)
        assert tuple(found) == metric.names and all(isinstance(value, float) and 0 <= value <= 1 for value in found.values())
    if kind != "function":
        assert set(metric.score("two words", "two words").values()) == {1.0}
