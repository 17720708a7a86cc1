"""`jaxtune resume RUN`: goes on where the checkpoints end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.cli.watching import show_result, watching
from jaxtune.run import resume


def run(output: Output, run_folder: Path) -> dict[str, Any]:
    with watching(output) as watch:
        result = resume(run_folder, watch=watch)
    return show_result(output, result)
