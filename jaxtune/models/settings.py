"""The `model:` section: which base, in which precision, with what dropout, and how its layers run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jaxtune.core.component import Component, OneOf
from jaxtune.core.errors import ConfigError
from jaxtune.layers.attention import Implementation
from jaxtune.layers.stack import StackOptions
from jaxtune.models import ADAPTERS
from jaxtune.models.adapters import Adapter
from jaxtune.models.family import DropoutRates, Family

Share = Annotated[float, Field(ge=0, lt=1)]


class NewModel(Component):
    """A model that starts from nothing."""

    family: str = Field(description="model_type of the family, e.g. vit")
    config: dict[str, Any] = Field(
        default_factory=dict, description="config.json of the new model: what differs from transformers' defaults"
    )


class Rates(Component):
    """Dropout by place; a place that is left out keeps the checkpoint's own rate."""

    hidden: Share | None = Field(default=None, description="after embeddings, attention and mlp")
    attention: Share | None = Field(default=None, description="attention probabilities")
    head: Share | None = Field(default=None, description="before the head's products")


class Model(Component):
    """The `model:` section."""

    base: str | NewModel = Field(description="hub id, folder or package://name/sub/folder; or {family, config} for a new model")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="precision of the computation; trained parameters are kept in float32"
    )
    dropout: Literal["base", "none"] | Rates = Field(
        "base", description="base: the checkpoint's own rates; none; or {hidden, attention, head}"
    )
    head: Literal["auto", "new"] = Field(
        "auto", description="auto: keep the checkpoint's head where its labels are these; new: always a fresh one"
    )
    scan_layers: Literal["auto"] | bool = Field(
        "auto", description="run equal layers as a loop (quick to compile) or unrolled; auto decides by depth"
    )
    remat: Literal["none", "dots", "block"] = Field(
        "none", description="what the backward pass computes again: nothing, all but products, whole blocks"
    )
    attention: Implementation = Field(
        "auto",
        description="auto: the quickest that can do it here; or xla, cpu, cudnn (gpu), splash (tpu), which are refused where they cannot",
    )
    adapter: Annotated[Adapter, OneOf(ADAPTERS)] | None = Field(
        default=None, description="trained parameters beside frozen dense layers, by kind; phases.train then names them, e.g. *.lora_*"
    )
    quantize: Literal["none", "int8", "nf4"] = Field(
        "none", description="keep the dense layers' kernels frozen in 8 or 4 bits: QLoRA, with an adapter"
    )
    allowed_licences: tuple[str, ...] | None = Field(default=None, description="licences the base may have; default: any")

    @model_validator(mode="after")
    def has_files_to_quantize(self) -> Model:
        if self.quantize != "none" and isinstance(self.base, NewModel):
            raise ConfigError(f"model.quantize: {self.quantize} keeps a checkpoint's kernels frozen, but this model is new; leave it out")
        return self

    def rates(self, family: Family) -> DropoutRates | None:
        """Dropout rates of the run, or None where dropout is statically off."""
        if self.dropout == "none":
            return None
        own = family.dropout
        if isinstance(self.dropout, Rates):
            given = {name: value for name, value in self.dropout.model_dump().items() if value is not None}
            return DropoutRates(**{**vars(own), **given})
        return own if any(vars(own).values()) else None

    def stack(self, cuts: tuple[int, ...] = ()) -> StackOptions:
        return StackOptions(cuts, self.scan_layers, self.remat, self.attention)
