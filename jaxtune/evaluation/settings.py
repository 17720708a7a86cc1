"""The `evaluation:` section: when the validation split is evaluated, what is kept of the predictions, and what is looked for in the data."""

from __future__ import annotations

from pydantic import Field

from jaxtune.core.component import Component
from jaxtune.evaluation.generation import Answers


class Evaluation(Component):
    """The `evaluation:` section. The end of every phase is always evaluated."""

    every_steps: int | None = Field(default=None, ge=1, description="evaluate every so many steps of a phase; default: at its end only")
    answers: Answers | None = Field(
        default=None, description="language models: answers to a fixed sample of rows, generated and scored at every evaluation"
    )
    predictions: bool = Field(default=True, description="write predictions/<split>.parquet for validation and test when the run ends")
    slices: bool = Field(
        default=True,
        description="every evaluation also writes a table by class and by length to evaluations.jsonl, for the trends in the report",
    )
    label_check: bool = Field(
        default=True,
        description="when the run ends, look for wrong labels among the training rows: one pass of the base model over them and a linear "
        "probe, at most about a third of an epoch's time; left out above 20,000 rows, in runs of less than an epoch, where an epoch takes more than 50 "
        "minutes, and for new models",
    )
    near_duplicates: bool = Field(
        default=True,
        description="when the run ends, look for near copies of validation and test examples in other splits: seconds for texts, for images the "
        "time to read them once; left out above 20,000 rows",
    )
