"""The commands around training: which model, which settings, what happened, what next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxtune.cli.calling import Debug, ExperimentFile, Json, Overrides, Run, app, call

RunsDir = Annotated[str, typer.Option(metavar="DIR", help="Where the folder with the results is made.")]
Change = Annotated[list[str], typer.Argument(metavar="key=value", help="What to change, such as optimizer.rate_scale=0.5.")]


@app.command(short_help="Which base model suits the data?")
def choose(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="A candidate: hub id, folder or package://name/folder; random:ID is the same model with random weights, to see what "
            "the pre-training is worth; repeat it.",
        ),
    ] = None,
    from_catalogue: Annotated[
        bool, typer.Option("--from-catalogue", help="Well-known models for the experiment's task as candidates.")
    ] = False,
    licence: Annotated[list[str] | None, typer.Option(metavar="LICENCE", help="Only candidates with this licence; repeat it.")] = None,
    max_parameters: Annotated[
        str | None, typer.Option(metavar="N", help="Only candidates of at most so many parameters, such as 100M.")
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(metavar="N", help="Only candidates that read texts of so many tokens.")] = None,
    runs_dir: RunsDir = "runs",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Rank base models for the experiment's data: how well their embeddings tell the labels apart, and what they cost.

    Example: jaxtune choose configs/quickstart.yaml --base sentence-transformers/all-MiniLM-L6-v2 --base google-bert/bert-base-uncased
    """
    call(
        "choose", json, debug, experiment=experiment, overrides=overrides or [], base=base or [], from_catalogue=from_catalogue,
        licence=licence or [], max_parameters=max_parameters, min_tokens=min_tokens, runs_dir=runs_dir,
    )  # fmt: skip


@app.command(short_help="Find a learning rate, and a batch size.")
def lr_test(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    phase: Annotated[int, typer.Option(min=0, help="The phase whose rate is looked for.")] = 0,
    low: Annotated[float, typer.Option(help="Rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option(help="Rate of the last step.")] = 1e-1,
    steps: Annotated[int, typer.Option(min=10, help="Steps from the lowest rate to the highest.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="How often the test is repeated.")] = 3,
    race: Annotated[
        int,
        typer.Option(
            min=0, max=5, help="So many rates around the suggestion are also trained for a while (more beyond an end that wins); 0: none."
        ),
    ] = 4,
    batch_sizes: Annotated[
        bool, typer.Option("--batch-sizes", help="Also look for the largest batch that fits and the useful one.")
    ] = False,
    runs_dir: RunsDir = "runs",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Raise the learning rate step by step, see where the loss falls fastest and where it breaks, and suggest a rate.

    Example: jaxtune lr-test configs/quickstart.yaml --phase 1
    """
    call(
        "lr_test", json, debug, experiment=experiment, overrides=overrides or [], phase=phase, low=low, high=high, steps=steps,
        seeds=seeds, race=race, batch_sizes=batch_sizes, runs_dir=runs_dir,
    )  # fmt: skip


@app.command(short_help="Search settings: grid, random, Bayesian, Hyperband.")
def search(
    file: Annotated[Path, typer.Argument(metavar="SEARCH.yaml", help="The search file: experiment, space, strategy.")],
    overrides: Overrides = None,
    runs_dir: RunsDir = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the search's folder; an existing search of this name goes on.")] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Join a search that another process began; needs a shared storage.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Try settings of an experiment and write the best as an experiment file. A search that was stopped goes on where it was.

    Example: jaxtune search configs/search/quickstart.yaml trials=20
    """
    call("search", json, debug, file=file, overrides=overrides or [], runs_dir=runs_dir, name=name, worker=worker)


@app.command(short_help="Write a run's report page again.")
def report(run: Run, json: Json = False, debug: Debug = False) -> None:
    """Write report.html of a run again, from what its folder holds.

    Example: jaxtune report runs/quickstart
    """
    call("report", json, debug, run_folder=run)


@app.command(short_help="Two runs side by side: is the difference real?")
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="The run to compare with.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="The run that may be better.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="PAGE.html", help="Also write a page.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two runs on the examples both predicted: paired differences with intervals, examples fixed and broken.

    Example: jaxtune compare runs/quickstart runs/quickstart-2
    """
    call("compare", json, debug, first=first, second=second, out=out)


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


@app.command(short_help="Follow runs in the browser.")
def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or a folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free one.")] = 8765,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show live curves of one or many runs on a page of this machine; reads the run folders only.

    Example: jaxtune watch runs/
    """
    call("watch", json, debug, folder=folder, port=port)


@app.command(short_help="The average of several runs' weights.")
def soup(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN[@STEP]", help="Runs from the same base; the best checkpoint, or that of a step.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write the model.")],
    weights: Annotated[str | None, typer.Option(metavar="W,W", help="The share of each, such as 0.7,0.3; equal ones otherwise.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Begin with the best on validation; add another only where the average gets no worse there.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Average the weights of several runs that began with the same base, as a Hugging Face folder.

    Example: jaxtune soup runs/quickstart runs/quickstart-2@120 -o averaged
    """
    call("soup", json, debug, runs=runs, out=out, weights=weights, greedy=greedy)
