"""`jaxtune choose X.yaml --base A --base B`: base models ranked for the experiment's data, with what each of them costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.experiment import load_experiment
from jaxtune.selection.candidates import Candidate, Filters, parse_count
from jaxtune.selection.catalogue import load_catalogue
from jaxtune.selection.choose import choose
from jaxtune.selection.choose_tables import notes, tables
from jaxtune.selection.chosen import as_json


def run(
    output: Output,
    experiment: Path,
    overrides: list[str],
    base: list[str],
    from_catalogue: bool,
    licence: list[str],
    max_parameters: str | None,
    min_tokens: int | None,
    runs_dir: str,
) -> dict[str, Any]:
    loaded = load_experiment(experiment, overrides)
    catalogue = load_catalogue()
    candidates = [Candidate.parse(text) for text in base]
    if from_catalogue:
        known = catalogue.of(loaded.task.domain)
        candidates += [Candidate(model.id) for model in known]
        output.say(f"{len(known)} models for {loaded.task.domain}s in the catalogue of {catalogue.revised}")
    filters = Filters(tuple(licence), None if max_parameters is None else parse_count(max_parameters), min_tokens)
    chosen = choose(loaded, candidates, filters=filters, runs_dir=runs_dir, tell=output.say)
    for table in tables(chosen, catalogue):
        output.say()
        output.table([(*row[1:], row[0]) for row in table.rows], head=(*table.columns[1:], table.columns[0]))  # names are long: last
        if table.note:
            output.say(table.note)
    for note in notes(chosen):
        output.say(f"note: {note}")
    output.say()
    output.say(chosen.verdict)
    output.say(f"written to {chosen.folder}; the page: {chosen.folder}/choose.html")
    return {"folder": str(chosen.folder), **as_json(chosen, catalogue)}
