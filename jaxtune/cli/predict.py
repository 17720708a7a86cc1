"""`jaxtune predict RUN INPUT -o OUT`: labels and probabilities for new data, or what a language model answers, beside the columns that came in."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.adjust import overridden
from jaxtune.api import LoadedModel, load_model, open_records, predict_records
from jaxtune.cli.output import Output
from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.core.files import plain
from jaxtune.core.printable import harmless
from jaxtune.evaluation.predictions import predictions_table
from jaxtune.generating import generate, stream
from jaxtune.models.generation import Generation

WRITERS = (".csv", ".jsonl", ".parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a text that starts so


def run(
    output: Output, run_folder: Path, source: str | None, out: Path | None, prompt: str | None, settings: Sequence[str]
) -> dict[str, Any]:
    check_words(source, out, prompt)
    if prompt is not None:
        return answer(output, run_folder, prompt, settings)
    assert source is not None and out is not None
    check_out(out)
    loaded = load_model(run_folder)
    records = open_records(loaded, source)
    if loaded.session.subject.task.generates:
        written = generate(loaded, records, how(loaded, settings))
        ids, added = written.ids, {"answer": list(written.texts), "ended": written.ended}
    else:
        if settings:
            raise ConfigError("--set: says how a language model writes; this run's model writes nothing")
        found = predict_records(loaded, records)
        ids, added = found.ids, predictions_table(found, loaded.names, loaded.session.subject.problem)
    columns: dict[str, Any] = {}
    for name in records.fields:
        values = [records[int(row)][name] for row in ids]
        if not any(isinstance(value, np.ndarray) for value in values[:1]):
            columns[name] = values
    columns |= {name if name not in columns else f"{name} (model)": value for name, value in added.items()}
    partial = out.with_name(out.name + ".partial")
    try:
        write(partial, out.suffix, columns)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(f"-o {out}: could not be written ({error.strerror}); choose another place") from error
    left_out = len(records) - len(ids)
    output.say(f"{out}: {len(ids)} rows" + (f", {left_out} left out by transforms or length" if left_out else ""))
    return {"out": str(out), "rows": len(ids), "left_out": left_out, "names": list(loaded.names)}


def answer(output: Output, run_folder: Path, prompt: str, settings: Sequence[str]) -> dict[str, Any]:
    """One answer, printed as it comes."""
    loaded = load_model(run_folder)
    parts = []
    for piece in stream(loaded, prompt, how(loaded, settings)):
        parts.append(piece)
        output.write(harmless(piece))
    output.say("" if parts else "(an empty answer)")
    return {"prompt": prompt, "answer": "".join(parts)}


def check_words(source: str | None, out: Path | None, prompt: str | None) -> None:
    """Raises:
    ConfigError: neither a file with a place for the answers, nor one prompt.
    """
    if prompt is None and source is not None and out is not None:
        return
    if prompt is not None and source is None and out is None:
        return
    given = (("INPUT", source), ("-o", out), ("--prompt", prompt))
    found = ", ".join(f"{name} {value}" for name, value in given if value is not None) or "neither"
    hint = "; every setting has a --set of its own" if prompt is not None and source is not None and "=" in source else ""
    raise ConfigError(f"expected either INPUT with -o OUT, or --prompt TEXT; found {found}{hint}")


def how(loaded: LoadedModel, settings: Sequence[str]) -> Generation | None:
    """The run's way of writing with changes; None where there are none.

    Raises:
        ConfigError: a setting that there is not, or that does not fit.
    """
    if not settings:
        return None
    own = loaded.session.subject.experiment.evaluation.answers
    return overridden(Generation() if own is None else own.generation, settings)


def check_out(out: Path) -> None:
    """Raises:
    ConfigError: nothing can be written there.
    """
    if out.suffix not in WRITERS:
        raise ConfigError(f'-o {out}: found suffix "{out.suffix}"; expected one of {", ".join(WRITERS)}')
    if out.exists():
        raise ConfigError(f"-o {out}: exists; nothing was written. Choose another file or remove it")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"-o {out}: there is no folder {out.parent}; make it, or choose another place")


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
