"""Answers to sampled validation rows: which rows, what they cost, how they are scored, and what the report shows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import MadeRun
from test_report import ATTACKS, Parsed, check_harmless
from tiny_decoder import VOCABULARY, generator

from jaxtune.core.errors import ConfigError
from jaxtune.core.files import Rows
from jaxtune.data.examples import Examples, Ragged
from jaxtune.evaluation.generation import Answers, answer, choose_questions, split_row
from jaxtune.evaluation.pages import fill
from jaxtune.evaluation.record import RunRecord
from jaxtune.evaluation.sections.samples import samples
from jaxtune.evaluation.sections.seen import Seen
from jaxtune.models.generation import Generation

END, SPECIAL = 3, (0, 3)


class Letters:
    """Token 1 is "b"; 0 and 3 are special."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return "".join(f"<{token}>" if token in SPECIAL else chr(97 + int(token)) for token in tokens)

    def special_mask(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, SPECIAL)


def rows(count: int = 20, longest: int = 12, seed: int = 0) -> Examples:
    """Prompts of some tokens and answers of some, which end with the end token."""
    dice = np.random.default_rng(seed)
    tokens, weights = [], []
    for _ in range(count):
        prompt, said = int(dice.integers(1, longest)), int(dice.integers(1, 5))
        tokens.append([*dice.integers(4, VOCABULARY, prompt + said), END])
        weights.append([0.0] * prompt + [1.0] * (said + 1))
    return Examples({"tokens": Ragged.of(tokens), "token_weight": Ragged.of(weights, np.float32)})  # type: ignore[dict-item]


# -- the sample -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0, 0, 1, 1], ([5, 6], [7, 8])),
        ([0, 1, 0, 0.5], ([5, 6, 7], [8])),
        ([0, 1, 1, 0], ([5], [6, 7])),
        ([0, 0, 0, 0], None),
        ([1, 1, 1, 1], None),
    ],
)
def test_a_row_is_cut_before_its_last_answer(weights: list[float], parts: tuple[list[int], list[int]] | None) -> None:
    found = split_row({"tokens": [5, 6, 7, 8], "token_weight": weights, "example_id": 4})
    assert (None if found is None else (found.prompt.tolist(), found.reference.tolist())) == parts
    assert found is None or found.row == 4


def test_the_sample_is_the_same_every_time_and_another_for_another_seed() -> None:
    examples, wanted = rows(), Answers(rows=6)
    first, again, other = (choose_questions(examples, wanted, max_tokens=None, seed=seed) for seed in (0, 0, 1))
    assert [q.row for q in first] == [q.row for q in again] != [q.row for q in other]
    assert len({q.row for q in first}) == 6
    part = choose_questions(examples.subset([3, 7]), wanted, max_tokens=None)
    assert {q.row for q in part} == {3, 7}, "rows keep their number in the whole data set"


def test_rows_that_were_cut_come_last() -> None:
    whole = rows()
    assert whole.lengths is not None
    full = whole.lengths + np.isin(np.arange(20), (2, 3, 5, 7, 11, 13))
    examples = Examples(whole.columns, facts={"full_length": full}).subset(np.arange(1, 20))
    found = [question.row for question in choose_questions(examples, Answers(rows=50), max_tokens=None)]
    assert len(found) == 19 and set(found[-6:]) == {2, 3, 5, 7, 11, 13}
    assert found[:13] != sorted(found[:13]), "still drawn"


def test_the_budget_holds() -> None:
    examples = rows()
    for budget in (60, 150, 10_000):
        found = choose_questions(examples, Answers(rows=50, token_budget=budget, generation=Generation(max_new_tokens=16)), max_tokens=None)
        cost = sum(len(q.prompt) + 16 for q in found)
        assert cost <= budget and (len(found) == 20 or cost + 12 + 16 > budget), "as many rows as it allows"
    with pytest.raises(ConfigError, match=r"token_budget: 10 tokens are too few for one row \(row \d+: a prompt of \d+ and 16 new\)"):
        choose_questions(examples, Answers(token_budget=10, generation=Generation(max_new_tokens=16)), max_tokens=None)


def test_rows_that_leave_no_room_are_left_out() -> None:
    examples, wanted = rows(), Answers(rows=50, generation=Generation(max_new_tokens=8))
    found = choose_questions(examples, wanted, max_tokens=14)
    assert 0 < len(found) < 20 and all(len(q.prompt) <= 6 for q in found)
    with pytest.raises(ConfigError, match=r"none of 20 rows can be answered"):
        choose_questions(examples, wanted, max_tokens=8)


# -- the answers ------------------------------------------------------------------------------------------------------------


def test_answers_are_scored_against_what_a_person_reads() -> None:
    wanted = Answers.model_validate({"rows": 5, "generation": {"max_new_tokens": 6}, "metrics": ["exact_match", "chrf"]})
    questions = choose_questions(rows(), wanted, max_tokens=64)
    made, params = generator(wanted.generation, ends=(END,))
    found = answer(questions, wanted, made, params, {}, Letters())
    plain = made(params, {}, [q.prompt for q in questions])
    for row, question, tokens, end in zip(found.rows, questions, plain.tokens, plain.ends, strict=True):
        assert row["prompt"] == Letters().decode(question.prompt)
        assert row["reference"] == Letters().decode(question.reference[:-1]) and "<" not in row["reference"]
        assert row["generated"] == Letters().decode([t for t in tokens if t not in SPECIAL]) and row["ended"] == (end == END)
        assert row["scores"] == wanted.score(row["generated"], row["reference"])
        json.dumps(row)
    assert found.tokens == sum(map(len, plain.tokens))
    assert found.metrics == {name: pytest.approx(np.mean([row["scores"][name] for row in found.rows])) for name in ("exact_match", "chrf")}


@pytest.mark.parametrize("metrics", [["rouge", "rouge"], [{"kind": "function", "function": "operator:eq", "name": "loss"}]])
def test_scores_of_one_name_are_refused(metrics: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"(rouge_1, rouge_2, rouge_l|loss) would be there twice"):
        Answers.model_validate({"metrics": metrics})


def test_a_right_answer_scores_one() -> None:
    """The reference is what the model says greedily."""
    made, params = generator(Generation(max_new_tokens=6), ends=(END,))
    prompts = [[5, 6, 7], [8, 9]]
    said = [[*tokens, END] for tokens in made(params, {}, prompts).tokens]
    tokens = [[*prompt, *more] for prompt, more in zip(prompts, said, strict=True)]
    weights = [[0.0] * len(prompt) + [1.0] * len(more) for prompt, more in zip(prompts, said, strict=True)]
    examples = Examples({"tokens": Ragged.of(tokens), "token_weight": Ragged.of(weights, np.float32)})  # type: ignore[dict-item]
    wanted = Answers(generation=made.settings)
    found = answer(choose_questions(examples, wanted, max_tokens=64), wanted, made, params, {}, Letters())
    assert found.metrics["exact_match"] == 1.0


# -- the report -------------------------------------------------------------------------------------------------------------


def told(step: int, row: int, text: str, score: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "row": row,
        "prompt": f"prompt {row}",
        "reference": f"reference {row}",
        "generated": text,
        "scores": {"rouge_l": score},
        "ended": True,
    } | more


def page(folder: Path, lines: Sequence[dict[str, Any]]) -> tuple[Parsed, dict[str, Any]]:
    MadeRun(examples=20, steps=12).write(folder)
    file = Rows(folder / "samples.jsonl")
    for line in lines:
        file.append(line)
    found = samples(Seen.of(RunRecord.read(folder), None))
    return Parsed(fill("samples.html", **found)), found["samples"]


def test_the_report_shows_five_rows_before_and_after(tmp_path: Path) -> None:
    lines = [told(step, row, f"answer {row} of {step}", 0.1 + 0.05 * step + 0.01 * row) for step in (0, 5, 10) for row in range(8)]
    found, told_of = page(tmp_path / "run", lines)
    text = found.text.replace("\u00a0", " ")
    assert found.headings == ["Answers"]
    assert found.text_in("th")[:4] == ["score", "before training", "at step 10", "difference"]
    assert "ROUGE-L 0.135 0.635 +0.500 +0.500 to +0.500" in text, "every row gained as much"
    shown = [row for row in range(8) if f"answer {row} of 10" in text]
    assert shown == [0, 1, 2, 3, 4] and all(f"answer {row} of 0" in text for row in shown) and "of 5" not in text
    assert [one["row"] for one in told_of["list"]] == shown


def test_one_evaluation_stands_alone(tmp_path: Path) -> None:
    found, told_of = page(tmp_path / "run", [told(5, row, "same", 0.25, ended=row > 0) for row in range(4)])
    assert "difference" not in found.text_in("th") and told_of["steps"] == ["at step 5"]
    assert "75.0" in found.text and found.text.count("cut at the most tokens allowed") == 1


def test_of_a_row_told_twice_the_later_word_holds(tmp_path: Path) -> None:
    _, told_of = page(tmp_path / "run", [told(0, 1, "a", 0.0), told(5, 1, "old", 0.1), told(5, 1, "new", 0.9)])
    assert told_of["list"][0]["answers"][1]["text"] == "new" and told_of["changes"][0].last == 0.9
    assert told_of["changes"][0].interval is None, "one row has no spread"


def test_without_samples_there_is_no_section(tmp_path: Path) -> None:
    found, told_of = page(tmp_path / "run", [])
    assert told_of is None and found.text == ""


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_texts_stay_texts(attack: str, tmp_path: Path) -> None:
    lines = [told(step, 1, attack, 0.5, prompt=attack, reference=attack, scores={attack: 0.5}) for step in (0, 4)]
    found, _ = page(tmp_path / "run", lines)
    check_harmless(found)
    assert not set("\x1b\x00\u202e") & set(found.text)
