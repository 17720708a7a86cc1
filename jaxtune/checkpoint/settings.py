"""The `checkpoint:` section: how often a run is saved and what is kept."""

from __future__ import annotations

from pydantic import Field

from jaxtune.core.component import Component


class Checkpoint(Component):
    """The `checkpoint:` section. The best checkpoint is kept as well, whenever it happens, and so is the end of every phase."""

    every_steps: int | None = Field(
        default=None, ge=1, description="save every so many steps of a phase; default: at its end and when the best changes"
    )
    keep_latest: int = Field(default=2, ge=1, description="how many of the latest checkpoints stay on disk")
