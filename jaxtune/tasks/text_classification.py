"""Text classification: one class, several, or a number per text or pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
from pydantic import Field

from jaxtune.models.family import Domain
from jaxtune.tasks.base import Task


class TextClassification(Task):
    """Reads `text` (and `pair`), predicts `label`."""

    domain: ClassVar[Domain] = "text"

    text: str = Field("text", description="column with the text")
    pair: str | None = Field(None, description="column with a second text, for pairs")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text, self.label) if self.pair is None else (self.text, self.pair, self.label)

    def prepare(self, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        return batch
