"""`jaxtune report RUN`: the report page written again, from the run folder and, where they are still there, the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError, DiskError, JaxtuneError
from jaxtune.data.sources.base import Records
from jaxtune.evaluation.record import data_of
from jaxtune.evaluation.report import write_report
from jaxtune.experiment import load_experiment
from jaxtune.prepare import data_fingerprint, open_records
from jaxtune.run_folder import RunFolder


def run(output: Output, run_folder: Path) -> dict[str, Any]:
    folder = RunFolder.existing(run_folder)
    if not folder.result.is_file():
        status = folder.state().get("status", "unknown")
        raise ConfigError(f"{run_folder}: the run has no result yet (it is {status}); its report is written when it has ended")
    records, why_not = records_of(folder.path)
    try:
        page = write_report(folder.path, records)
    except OSError as error:
        raise DiskError(f"{run_folder}: the report could not be written there ({error.strerror})") from error
    output.say(f"{page}" + (f" (without texts and images: {why_not})" if why_not else ""))
    return {"run": str(run_folder), "report": str(page), "with_records": records is not None, "why_not": why_not or None}


def records_of(run: Path) -> tuple[Records | None, str]:
    """The records that a run was trained on, or why they are not to be had: gone, or no longer the same, when row numbers mean nothing."""
    try:
        experiment = load_experiment(run / "resolved.yaml")
        known = data_of(run)
        if known is not None and data_fingerprint(experiment) != known:
            return None, "the data have changed since the run"
        return open_records(experiment), ""
    except (JaxtuneError, OSError) as error:
        return None, str(error).splitlines()[0]
