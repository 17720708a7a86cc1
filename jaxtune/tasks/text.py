"""What all tasks that read text need: the base's tokenizer, if it belongs to the model, and a report of what of the texts is learned."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.core.errors import ConfigError
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms.chat_template import ChatTemplate
from jaxtune.data.transforms.targets import TargetReport
from jaxtune.data.transforms.tokenize import LengthReport, Tokenizer
from jaxtune.models.load import Base


def load_tokenizer(base: Base) -> Tokenizer:
    """The base's tokenizer.

    Raises:
        ConfigError: there is none, or it has more tokens than the model.
    """
    if base.folder is None:
        raise ConfigError(f"model.base: {base.reference} has no tokenizer; for text start from a checkpoint (hub id, folder or package://)")
    tokenizer = Tokenizer.load(base.folder)
    vocabulary = base.family.vocabulary
    if vocabulary is not None and tokenizer.vocabulary > vocabulary:
        raise ConfigError(
            f"model.base {base.reference}: the tokenizer knows {tokenizer.vocabulary} tokens, the model's table has {vocabulary} rows; "
            "they belong to different models"
        )
    return tokenizer


def chat_template(tokenizer: Tokenizer, variables: Mapping[str, Any], today: datetime.date | None) -> ChatTemplate:
    """The checkpoint's chat template.

    Raises:
        ModelError: it has none.
    """
    now = None if today is None else datetime.datetime.combine(today, datetime.time())
    return ChatTemplate.load(tokenizer.folder, SpecialTokens.load(tokenizer), variables=variables, now=now)


def learned(examples: Examples, tokenizer: Tokenizer, special: SpecialTokens, limits: Limits, *, must_stop: bool) -> dict[str, Any]:
    """The report of rows with targets, whatever the cache held.

    Raises:
        DataError: nothing is learned, or (`must_stop`) never where an answer ends.
    """
    assert limits.max_tokens is not None
    found = TargetReport.of(examples, limits.max_tokens, limits.over_length, special.stops)
    found.check([tokenizer.decode([token]) for token in special.stops], must_stop=must_stop)
    return {"lengths": LengthReport.of(np.asarray(examples.facts["full_length"]), limits.max_tokens), "targets": found}
