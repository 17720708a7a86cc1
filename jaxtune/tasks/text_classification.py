"""Text classification: one class, several, or a number per text or pair of texts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from jaxtune.data import cache
from jaxtune.data.examples import Examples
from jaxtune.data.processor import Limits, Processor
from jaxtune.data.sources.base import Records
from jaxtune.data.transforms.tokenize import LengthReport
from jaxtune.models.family import Domain
from jaxtune.models.load import Base
from jaxtune.tasks.base import Encoded
from jaxtune.tasks.labelled import LabelledTask
from jaxtune.tasks.text import load_tokenizer


class TextClassification(LabelledTask):
    """Reads `text` (and `pair`), predicts `label`."""

    domain: ClassVar[Domain] = "text"

    text: str = Field(default="text", description="column with the text")
    pair: str | None = Field(default=None, description="column with a second text, for pairs")

    @property
    def content(self) -> tuple[str, ...]:
        return (self.text,) if self.pair is None else (self.text, self.pair)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.content

    def processor(self, base: Base) -> Processor:
        return Processor(tokenizer=load_tokenizer(base))

    def encode(self, records: Records, names: tuple[str, ...], processor: Processor, limits: Limits) -> Encoded:
        """Token rows, cached on disk under everything that decides them; labels are cheap and made anew."""
        tokenizer, limit = processor.tokenizer, limits.max_tokens
        assert tokenizer is not None and limit is not None
        rows = [records[i] for i in range(len(records))]

        def build() -> Examples:
            pairs = None if self.pair is None else [row[self.pair] for row in rows]
            encoded = tokenizer.encode([row[self.text] for row in rows], pairs, max_tokens=limit, over_length=limits.over_length)
            columns: dict[str, Any] = {"tokens": encoded.tokens}
            if encoded.token_types is not None:
                columns["token_types"] = encoded.token_types
            return Examples(columns, facts={"full_length": encoded.full_lengths, "kept": encoded.kept})

        key = cache.fingerprint(
            {
                "records": limits.key,
                "task": [
                    f"{type(self).__module__}:{type(self).__qualname__}",
                    self.model_dump(mode="json", exclude=set(LabelledTask.model_fields)),
                ],
                "tokenizer": tokenizer.fingerprint,
                "max_tokens": limit,
                "over_length": limits.over_length,
            }
        )
        stored, hit = cache.load_or_build(limits.cache, key, build)
        labels = self.encode_labels([row[self.label] for row in rows], names) if self.label in records.fields else {}
        examples = Examples({**stored.columns, **labels}, stored.lengths, stored.facts)
        report = {"lengths": LengthReport.of(np.asarray(stored.facts["full_length"]), limit), "from_cache": hit}
        return Encoded(examples, np.flatnonzero(stored.facts["kept"]), report)
