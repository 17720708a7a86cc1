"""The commands of a run: look, check, train, resume, evaluate, predict, export, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jaxtune.cli.calling import Debug, ExperimentFile, Json, Overrides, Run, app, call


@app.command(short_help="Look at a data file and write an experiment for it.")
def new(
    data: Annotated[str, typer.Option(help="A .csv, .jsonl or .parquet file, or a folder of texts or images with a folder per class.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT.yaml", help="Where to write; the data's name otherwise.")] = None,
    task: Annotated[
        str | None, typer.Option(help="text_classification, image_classification, causal_lm or preference; seen from the data otherwise.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Hub id, folder or package://name/folder of the base model.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the text; found by a look otherwise.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column to predict; found by a look otherwise.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at a data file and write a commented experiment for it.

    Example: jaxtune new --data reviews.csv -o reviews.yaml
    """
    call("new", json, debug, data=data, out=out, task=task, base=base, text=text, label=label)


@app.command(short_help="Everything short of step 1: does it all fit?")
def check(experiment: ExperimentFile, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> None:
    """Do everything short of step 1: settings, files, labels, lengths, shapes, and whether model, task and data fit.

    Example: jaxtune check configs/quickstart.yaml
    """
    call("check", json, debug, experiment=experiment, overrides=overrides or [])


@app.command(short_help="Show what the model really sees.")
def preview(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many examples.")] = 5,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the model really sees.

    Example: jaxtune preview configs/quickstart.yaml -n 3 --split validation
    """
    call("preview", json, debug, experiment=experiment, overrides=overrides or [], count=count, split=split)


@app.command(short_help="Fine-tune, evaluate, report, export.")
def train(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    runs_dir: Annotated[str, typer.Option(metavar="DIR", help="Where the run folder is made.")] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the run folder, instead of the experiment's name.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune, evaluate the best checkpoint on the test split, write the report and export the model.

    Example: jaxtune train configs/quickstart.yaml seed=1 phases.1.epochs=3
    """
    call("train", json, debug, experiment=experiment, overrides=overrides or [], runs_dir=runs_dir, name=name)


@app.command(short_help="Go on with an interrupted run.")
def resume(run: Run, json: Json = False, debug: Debug = False) -> None:
    """Go on with a run that was interrupted, from its last checkpoint; a run that is done stays as it is.

    Example: jaxtune resume runs/quickstart
    """
    call("resume", json, debug, run_folder=run)


@app.command(short_help="Measure a checkpoint on one split.")
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(metavar="best|latest|STEP", help="Which checkpoint.")] = "best",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a checkpoint of a run on one split.

    Example: jaxtune evaluate runs/quickstart --split validation --checkpoint latest
    """
    call("evaluate", json, debug, run_folder=run, split=split, checkpoint=checkpoint)


@app.command(short_help="Labels and probabilities, or answers, for new data.")
def predict(
    run: Run,
    source: Annotated[str | None, typer.Argument(metavar="[INPUT]", help="New data of the same kind: a file or a folder.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT", help="A .csv, .jsonl or .parquet file to write.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Language models: answer this, on the terminal, as it comes; in place of INPUT.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Language models: how to write, e.g. temperature=0.7 or max_new_tokens=200; repeat it."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write labels and probabilities for new data; a language model writes answers.

    Example: jaxtune predict runs/quickstart new.csv -o predictions.csv

    Example: jaxtune predict runs/smollm2-headlines --prompt "Write a headline for this news article: ..."
    """
    call("predict", json, debug, run_folder=run, source=source, out=out, prompt=prompt, settings=settings or [])


@app.command(short_help="Write a Hugging Face folder.")
def export(
    run: Run,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write; RUN/export otherwise.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the best checkpoint as a Hugging Face folder that transformers loads.

    Example: jaxtune export runs/quickstart -o my-model
    """
    call("export", json, debug, run_folder=run, out=out)


@app.command(short_help="Explain a setting, a kind, a family or a run.")
def describe(
    thing: Annotated[
        str | None,
        typer.Argument(
            metavar="THING",
            help="A section (data), setting (phases.optimizer), table (optimizers), kind (adamw), family (bert) or run folder.",
        ),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of an experiment, for editors.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain a setting, a section, a table of kinds, one kind, a model family or a run.

    Example: jaxtune describe adamw
    """
    call("describe", json, debug, thing=thing, schema=schema)


@app.command(short_help="Versions, devices, missing extras, room.")
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Show versions, devices, missing extras and room on this machine.

    Example: jaxtune doctor --json
    """
    call("doctor", json, debug)
