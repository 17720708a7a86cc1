"""The `data:` section: where examples come from, how they are split, how long they may be and how many make a batch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.data import AUGMENTS, SOURCES, SPLITS, TRANSFORMS
from jaxtune.data.augment import Augment
from jaxtune.data.sources.base import Source
from jaxtune.data.split import Split
from jaxtune.data.transforms.base import Transform


class Data(Component):
    """The `data:` section."""

    source: Annotated[Source, OneOf(SOURCES)] = Field(description="where the records come from")
    split: Annotated[Split, OneOf(SPLITS)] = Field(description="how records are divided into train, validation and test")
    transforms: tuple[Annotated[Transform, OneOf(TRANSFORMS)], ...] = Field(
        default=(), description="cleaning of records, before anything else"
    )
    augment: tuple[Annotated[Augment, OneOf(AUGMENTS)], ...] = Field(default=(), description="random changes of training examples only")
    max_tokens: int | None = Field(default=None, ge=2, description="longest text in tokens; default: what the model's positions allow")
    over_length: Literal["cut", "drop", "error"] = Field(default="cut", description="what happens to longer texts")
    widths: Literal["auto"] | tuple[int, ...] = Field(
        default="auto",
        description="token widths that batches are padded to, or the one width of packed rows; auto chooses from the lengths",
    )
    packing: Literal["none", "best_fit"] = Field(
        default="none",
        description="best_fit: training rows hold several examples, each seen by itself; batch_size then counts such rows",
    )
    batch_size: int | None = Field(default=None, ge=1, description="examples per optimizer step, over all devices")
    batch_tokens: int | None = Field(default=None, ge=1, description="tokens per optimizer step, over all devices, padding included")
    evaluation_batch_size: int | None = Field(default=None, ge=1, description="examples per evaluation batch; default: as in training")
    workers: int = Field(default=0, ge=0, description="processes that prepare batches; 0: threads of this process")

    @model_validator(mode="after")
    def one_size(self) -> Data:
        if (self.batch_size is None) == (self.batch_tokens is None):
            raise ValueError("set exactly one of batch_size (examples per step) and batch_tokens (tokens per step)")
        if self.widths != "auto" and list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths must rise, got {list(self.widths)}")
        if self.packing != "none" and self.widths != "auto" and len(self.widths) != 1:
            raise ValueError(f"packed rows have one width, got {list(self.widths)}; give one, or auto")
        if self.packing != "none" and self.augment:
            raise ValueError("augment changes tokens, which in packed rows are what is learned; leave it out, or packing: none")
        return self
