"""The commands around training: what next."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxtune.cli.calling import Debug, Json, Run, app, call

Change = Annotated[list[str], typer.Argument(metavar="key=value", help="What to change, such as optimizer.rate_scale=0.5.")]


@app.command(short_help="Change settings of a running run.")
def adjust(run: Run, changes: Change, json: Json = False, debug: Debug = False) -> None:
    """Change a run while it trains, or before it is resumed: rate, what trains, patience, batch, stop. Takes effect at the next evaluation.

    Example: jaxtune adjust runs/quickstart rate_scale=0.5
    """
    call("adjust", json, debug, run_folder=run, changes=changes)


@app.command(short_help="A new run from another one's best checkpoint.")
def branch(
    run: Run,
    changes: Change,
    name: Annotated[str | None, typer.Option(help="Name of the new run folder; the run's name and -branch otherwise.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a new run from the best checkpoint of another, with something changed: head, length, data, phases.

    Example: jaxtune branch runs/quickstart data.max_tokens=128
    """
    call("branch", json, debug, run_folder=run, changes=changes, name=name)
