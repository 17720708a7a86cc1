"""A score of one's own: any function of two texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from jaxtune.core.component import load_class
from jaxtune.core.errors import ConfigError
from jaxtune.metrics.text.base import TextMetric


class Function(TextMetric):
    """A score by a function `(generated, reference) -> number`; greater is better."""

    function: str = Field(description="package.module:function")
    name: str = Field(default="", description="of the score; default: the function's name")

    @model_validator(mode="after")
    def it_can_be_called(self) -> Function:
        """Raises:
        ConfigError: there is no such function.
        """
        try:
            found: Any = load_class(self.function)
        except PydanticCustomError as error:
            raise ConfigError(f"function: {error.message().removeprefix('kind ')}; expected package.module:function") from error
        if not callable(found):
            raise ConfigError(f"function: {self.function} is a {type(found).__name__}; expected a function of two texts")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name or self.function.rpartition(":")[2],)

    @property
    def call(self) -> Callable[[str, str], Any]:
        found: Any = load_class(self.function)
        return found

    def score(self, generated: str, reference: str) -> dict[str, float]:
        """Raises:
        ConfigError: what the function gives is no finite number.
        """
        given = self.call(generated, reference)
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{self.function} gave {given!r} for a text; expected a finite number")
        return {self.names[0]: value}
