"""The `evaluation:` section: when the validation split is evaluated and what is kept of the predictions."""

from __future__ import annotations

from pydantic import Field

from jaxtune.core.component import Component


class Evaluation(Component):
    """The `evaluation:` section. The end of every phase is always evaluated."""

    every_steps: int | None = Field(default=None, ge=1, description="evaluate every so many steps of a phase; default: at its end only")
    predictions: bool = Field(default=True, description="write predictions/<split>.parquet for validation and test when the run ends")
