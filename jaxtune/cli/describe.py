"""`jaxtune describe THING`: help made from the components' own declarations."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.cli.subjects import family, run_folder
from jaxtune.config.describe import Description, describe, find, table_name, tables
from jaxtune.config.editor import schema as schema_of

ROOT = "jaxtune.experiment:Experiment"
HOOKS: list[Callable[[str], Description | None]] = [family, run_folder]  # things that are no settings


def run(output: Output, thing: str | None, schema: bool) -> dict[str, Any]:
    root: Any = pkgutil.resolve_name(ROOT)
    if schema:
        return _schema(output, root)
    if thing is None:
        found = Description("An experiment", "Sections, in the order of the file:", tuple(describe(root)))
    else:
        found = find(thing, root, HOOKS)
    output.say(found.title)
    if found.text:
        output.say(found.text)
    output.say()
    for row in found.rows:
        default = row.default if row.default == "required" else f"default {row.default}"
        output.say(f"{row.name}: {', '.join(part for part in (row.type, row.constraints, default) if part)}")
        if row.description:
            output.say(f"    {row.description}")
    output.table(list((found.kinds or {}).items()))
    if thing is None:
        output.say()
        output.say("Tables (jaxtune describe NAME lists the kinds):")
        output.table([(table_name(choice), ", ".join(sorted(choice.table))) for choice in tables(root)])
    return found.as_json()


def _schema(output: Output, root: Any) -> dict[str, Any]:
    made = schema_of(root)
    output.say(json.dumps(made, indent=1))
    return made
