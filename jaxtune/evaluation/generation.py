"""Answers to a fixed sample of validation rows: made at every evaluation, scored against the references, kept to be read.

A loss says how well the model predicts the reference's next token, not what it writes by itself; the same few rows every time show how
that changes. What one evaluation may cost is known before it begins: so many rows, and so many tokens at the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.data.examples import Examples
from jaxtune.data.transforms.targets import last_answer
from jaxtune.metrics.text import TEXT_METRICS
from jaxtune.metrics.text.answers import ExactMatch
from jaxtune.metrics.text.base import TextMetric
from jaxtune.metrics.text.rouge import Rouge
from jaxtune.models.blueprint import Flat
from jaxtune.models.generate import Generator
from jaxtune.models.generation import Generation


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str: ...

    def special_mask(self, tokens: np.ndarray) -> np.ndarray: ...


class Answers(Component):
    """Answers that every evaluation generates, scores and writes down."""

    rows: int = Field(default=32, ge=1, description="validation rows that are answered, the same at every evaluation")
    token_budget: int | None = Field(
        default=None, ge=1, description="most tokens of an evaluation, prompts and answers together; fewer rows are taken to keep to it"
    )
    batch_size: int = Field(default=8, ge=1, description="rows that are answered at once, over all devices")
    generation: Generation = Field(default_factory=Generation, description="how the answers are made")
    metrics: tuple[Annotated[TextMetric, OneOf(TEXT_METRICS)], ...] = Field(
        default=(Rouge(), ExactMatch()), min_length=1, description="scores of an answer against its reference, by kind"
    )

    @model_validator(mode="after")
    def names_differ(self) -> Answers:
        """Raises:
        ConfigError: two metrics give a score of the same name, or one the name of the loss.
        """
        names = ["loss", *self.names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"metrics: {', '.join(twice)} would be there twice; leave one out, or give a function another name")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of all scores; a greater one is the better."""
        return tuple(name for metric in self.metrics for name in metric.names)

    def score(self, generated: str, reference: str) -> dict[str, float]:
        return {name: value for metric in self.metrics for name, value in metric.score(generated, reference).items()}


@dataclass(frozen=True)
class Question:
    """A row cut before its last answer."""

    row: int  # number in the whole data set
    prompt: np.ndarray  # i32[T]
    reference: np.ndarray  # i32[A]


@dataclass(frozen=True)
class Answered:
    """
    Attributes:
        metrics: mean of every score over the rows.
        rows: one object a row, as samples.jsonl holds them: row, prompt, reference, generated, scores, ended.
        tokens: that were generated.
    """

    metrics: Mapping[str, float]
    rows: tuple[Mapping[str, Any], ...]
    tokens: int


def choose_questions(examples: Examples, answers: Answers, *, max_tokens: int | None, seed: int = 0) -> tuple[Question, ...]:
    """The rows that are answered: drawn once by seed, of those that have an answer and leave room for a new one, within the budget.

    Rows that max_tokens has cut come last: what is left of their answer is no fair reference.

    Args:
        examples: a split with the columns `tokens` and `token_weight`.
        max_tokens: positions of the model; None where nothing bounds them.

    Raises:
        ConfigError: no row can be answered, or the budget is too small for one.
    """
    new, spent = answers.generation.max_new_tokens, 0
    found: list[Question] = []
    order = np.random.default_rng(seed).permutation(len(examples))
    if "full_length" in examples.facts:
        order = order[np.argsort((examples.column("full_length") > np.asarray(examples.lengths))[order], kind="stable")]
    for number in order.tolist():
        question = split_row(examples.row(number))
        if question is None or (max_tokens is not None and len(question.prompt) + new > max_tokens):
            continue
        cost = len(question.prompt) + new
        if answers.token_budget is not None and spent + cost > answers.token_budget:
            if not found:
                raise ConfigError(
                    f"token_budget: {answers.token_budget} tokens are too few for one row (row {question.row}: a prompt of {len(question.prompt)} "
                    f"and {new} new); raise it or lower generation.max_new_tokens"
                )
            break
        found.append(question)
        spent += cost
        if len(found) == answers.rows:
            break
    if not found:
        if max_tokens is not None and any(split_row(examples.row(number)) for number in range(len(examples))):
            raise ConfigError(
                f"none of {len(examples)} rows can be answered: a prompt and generation.max_new_tokens {new} are more than the {max_tokens} "
                "positions of the model; lower max_new_tokens"
            )
        raise ConfigError(
            f"none of {len(examples)} rows can be answered: in none do learned tokens follow a prompt; leave evaluation.answers out"
        )
    return tuple(found)


def split_row(row: Mapping[str, Any]) -> Question | None:
    """The row cut where its last run of trained tokens begins; None where it has none, or nothing before it."""
    prompt, reference = last_answer(row["tokens"], row["token_weight"])
    return Question(int(row["example_id"]), prompt, reference) if len(prompt) and len(reference) else None


def answer(
    questions: Sequence[Question], answers: Answers, generator: Generator, params: Flat, variables: Flat, tokenizer: Decoder
) -> Answered:
    """Answers all questions, and scores them. Special tokens are no part of an answer or reference, nor are spaces around them."""
    found = generator(params, variables, [question.prompt for question in questions])
    rows = []
    for question, tokens, end in zip(questions, found.tokens, found.ends.tolist(), strict=True):
        generated, reference = (as_text(part, tokenizer, generator.ends) for part in (tokens, question.reference))
        rows.append(
            {
                "row": question.row,
                "prompt": tokenizer.decode(question.prompt),
                "reference": reference,
                "generated": generated,
                "scores": answers.score(generated, reference),
                "ended": end >= 0,
            }
        )
    means = {name: float(np.mean([row["scores"][name] for row in rows])) for name in answers.names}
    return Answered(means, tuple(rows), sum(map(len, found.tokens)))


def as_text(tokens: np.ndarray, tokenizer: Decoder, ends: Sequence[int]) -> str:
    """What a person reads of an answer."""
    silent = tokenizer.special_mask(tokens) | np.isin(tokens, ends)
    return tokenizer.decode(tokens[~silent]).strip()
