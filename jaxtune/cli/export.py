"""`jaxtune export RUN`: a Hugging Face folder of the best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.api import export_model
from jaxtune.cli.output import Output


def run(output: Output, run_folder: Path, out: Path | None) -> dict[str, Any]:
    folder = export_model(run_folder, out or run_folder / "export")
    files = sorted(path.name for path in folder.iterdir())
    output.say(f"{folder}: {', '.join(files)}")
    return {"folder": str(folder), "files": files}
