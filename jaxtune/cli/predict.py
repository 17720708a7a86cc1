"""`jaxtune predict RUN INPUT -o OUT`: labels and probabilities for new data, beside the columns that came in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.api import load_model, open_records, predict_records
from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.core.files import plain
from jaxtune.evaluation.predictions import predictions_table

WRITERS = (".csv", ".jsonl", ".parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a text that starts so


def run(output: Output, run_folder: Path, source: str, out: Path) -> dict[str, Any]:
    if out.suffix not in WRITERS:
        raise ConfigError(f'-o {out}: found suffix "{out.suffix}"; expected one of {", ".join(WRITERS)}')
    if out.exists():
        raise ConfigError(f"-o {out}: exists; nothing was written. Choose another file or remove it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out}: there is no folder {out.parent}; make it, or choose another place")
    loaded = load_model(run_folder)
    records = open_records(loaded, source)
    found = predict_records(loaded, records)
    task = loaded.session.subject.task
    columns: dict[str, Any] = {}
    for name in records.fields:
        values = [records[int(row)][name] for row in found.ids]
        if not any(isinstance(value, np.ndarray) for value in values[:1]):
            columns[name] = values
    columns |= {
        name if name not in columns else f"{name} (model)": value
        for name, value in predictions_table(found, loaded.names, task.problem).items()
    }
    partial = out.with_name(out.name + ".partial")
    try:
        write(partial, out.suffix, columns)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(f"-o {out}: could not be written ({error.strerror}); choose another place") from error
    left_out = len(records) - len(found.ids)
    output.say(f"{out}: {len(found.ids)} rows" + (f", {left_out} left out by transforms or length" if left_out else ""))
    return {"out": str(out), "rows": len(found.ids), "left_out": left_out, "names": list(loaded.names)}


def write(path: Path, suffix: str, columns: dict[str, Any]) -> None:
    """The table in the form that the suffix names."""
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
        return
    names = list(columns)
    rows = zip(*(plain(list(values)) for values in columns.values()), strict=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".jsonl":
            for row in rows:
                file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
            return
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            writer.writerow([cell(value) for value in row])


def cell(value: Any) -> Any:
    """A CSV cell: lists joined by "|", texts that a spreadsheet would take for a formula made harmless."""
    if isinstance(value, list):
        value = "|".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
