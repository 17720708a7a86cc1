"""What a language model that was trained writes: for records of the kind it was trained on, all at once or as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.api import LoadedModel, load_model, open_records, unlabelled
from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.generation import as_text
from jaxtune.models.generate import Generator, pieces
from jaxtune.models.generation import Generation
from jaxtune.tasks.causal_lm import CausalLM

BATCH_SIZE = 8


@dataclass(frozen=True)
class Written:
    """
    Attributes:
        ids: row numbers of the records that transforms leave.
        texts: what the model wrote for each, without special tokens.
        ended: whether it came to an end by itself.
    """

    ids: np.ndarray
    texts: tuple[str, ...]
    ended: np.ndarray


def generate(model: LoadedModel | str | Path, records: Any, settings: Generation | None = None, *, batch_size: int = BATCH_SIZE) -> Written:
    """Answers to records as `jaxtune.predict` takes them: a source, a path, mappings with the task's columns, or prompts.

    Args:
        settings: how to write; default: as the experiment's evaluation does.

    Raises:
        ConfigError: the run is no language model, or the data lack a column.
        DataError: a record does not hold what the task reads.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    task, generator = writer(loaded, settings, batch_size)
    tokenizer = loaded.session.subject.processor.tokenizer
    assert tokenizer is not None
    cleaned = unlabelled(loaded, open_records(loaded, records))
    found = generator(loaded.params, loaded.variables, task.prompts([cleaned[row] for row in range(len(cleaned))], tokenizer))
    texts = tuple(as_text(tokens, tokenizer, generator.ends) for tokens in found.tokens)
    return Written(cleaned.rows, texts, found.ends >= 0)


def stream(model: LoadedModel | str | Path, record: Mapping[str, Any] | str, settings: Generation | None = None) -> Iterator[str]:
    """One answer, in pieces of text as they come; of beam search, which knows no token before it knows all, in one piece.

    Raises:
        ConfigError: the run is no language model, or the prompt is too long for it.
        DataError: the record does not hold what the task reads.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    task, generator = writer(loaded, settings, 1)
    tokenizer = loaded.session.subject.processor.tokenizer
    assert tokenizer is not None
    asked = task.from_text(record) if isinstance(record, str) else dict(record)
    (prompt,) = prompts = task.prompts([asked], tokenizer)

    def decode(tokens: Sequence[int]) -> str:
        return as_text(np.asarray(tokens, np.int32), tokenizer, generator.ends)

    if generator.settings.beams > 1:
        (tokens,) = generator(loaded.params, loaded.variables, prompts).tokens
        return iter([decode(tokens.tolist())])
    return pieces(generator.stream(loaded.params, loaded.variables, prompt), decode)


def writer(loaded: LoadedModel, settings: Generation | None, batch_size: int) -> tuple[CausalLM, Generator]:
    """The run's task, and what writes with its model.

    Raises:
        ConfigError: the run is no language model.
    """
    subject = loaded.session.subject
    if not isinstance(subject.task, CausalLM):
        raise ConfigError(
            f"the run's task is {type(subject.task).__name__}, which writes nothing; expected a run with task.kind: causal_lm"
        )
    own = subject.experiment.evaluation.answers
    chosen = settings or (Generation() if own is None else own.generation)
    return subject.task, loaded.session.generator(loaded.blueprint, chosen, batch_size)
