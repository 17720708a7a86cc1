"""Well-known base models and what is published about them: a small dated table, for candidates that nobody has downloaded yet.

The facts serve to filter before a download and stand beside the measurements; what was measured on the user's data always decides.
"""

from __future__ import annotations

from importlib.resources import files

import yaml
from pydantic import Field

from jaxtune.config.yaml12 import Yaml12Loader
from jaxtune.core.component import Component
from jaxtune.models.family import Domain


class Benchmark(Component):
    """One published number."""

    name: str = Field(description="what was measured, and how")
    value: float = Field(description="the number")
    source: str = Field(description="where it is published")


class KnownModel(Component):
    """One row; None where a fact is not known."""

    id: str = Field(description="hub id")
    domain: Domain = Field(description="what it reads")
    model_type: str = Field(description="the family that serves it")
    parameters: int = Field(description="of the encoder without a task's head, rounded")
    licence: str | None = Field(description="as the model card names it")
    languages: str | None = Field(description="of the texts it was trained on")
    pretraining: str | None = Field(description="what it was trained on")
    context: int | None = Field(description="longest text in tokens")
    benchmark: Benchmark | None = Field(description="one published number with its source")
    documentation: str = Field(description="address of the model card")
    released: str | None = Field(description="year and month of the first paper or release")
    last_update: str | None = Field(description="year and month of the last change of the checkpoint")


class Catalogue(Component):
    """The table and its date."""

    revised: str = Field(description="date of the last revision of the rows")
    models: tuple[KnownModel, ...] = Field(description="the rows")

    def of(self, domain: Domain) -> tuple[KnownModel, ...]:
        """The rows for a task of this domain."""
        return tuple(model for model in self.models if model.domain == domain)

    def find(self, reference: object) -> KnownModel | None:
        """The row of a hub id, with or without a revision ("id@revision")."""
        name = str(reference).partition("@")[0]
        return next((model for model in self.models if model.id == name), None)


def load_catalogue() -> Catalogue:
    """Reads the table that comes with the package."""
    text = files("jaxtune.selection").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return Catalogue.model_validate(yaml.load(text, Loader=Yaml12Loader))
