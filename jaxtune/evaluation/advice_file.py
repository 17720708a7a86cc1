"""advice.json, apart from the rules that write it, so that reading it costs neither jax nor the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "advice.json"


@dataclass(frozen=True)
class Advice:
    """A rule's finding."""

    rule: str
    saw: str
    change: tuple[str, ...]
    why: str

    @property
    def line(self) -> str:
        """For a terminal."""
        return f"{self.saw}{f' Try {" ".join(self.change)}.' if self.change else ''}"

    def as_json(self) -> dict[str, Any]:
        return {"rule": self.rule, "saw": self.saw, "change": list(self.change), "why": self.why}


def read_advice(folder: Path) -> Sequence[Advice]:
    """What advice.json holds; nothing where there is none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["findings"]
    except (OSError, ValueError, KeyError):
        return ()
    return [Advice(one["rule"], one["saw"], tuple(one["change"]), one["why"]) for one in found]
