"""The command line: all commands with their arguments, and the one place where an error becomes a message and an exit code.

A command's body lies in its own module, imported when it is called, so that help costs neither jax nor pydantic.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from jaxtune.cli.output import Output, as_user_error, crash_report, error_object, exit_code, print_error, write_json
from jaxtune.core.errors import EXIT_CODES, JaxtuneError

_CODES = "Exit codes:\n\n\b\n" + "\n".join(f"{code:4d}  {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="jaxtune",
    help="Fine-tune pretrained models on JAX: choose a base, look at the data, train, watch, evaluate, hand the model back.",
    epilog=_CODES,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ExperimentFile = Annotated[Path, typer.Argument(metavar="X.yaml", help="The experiment file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Settings that replace the file's, such as phases.0.epochs=2.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")]


def _version(wanted: bool) -> None:
    if wanted:
        from jaxtune import __version__

        print(f"jaxtune {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


@app.command(short_help="Look at a data file and write an experiment for it.")
def new(
    data: Annotated[str, typer.Option(help="A .csv, .jsonl or .parquet file, or a folder of texts or images with a folder per class.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT.yaml", help="Where to write; the data's name otherwise.")] = None,
    task: Annotated[str | None, typer.Option(help="text_classification or image_classification; seen from the data otherwise.")] = None,
    base: Annotated[str | None, typer.Option(help="Hub id, folder or package://name/folder of the base model.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the text; found by a look otherwise.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column to predict; found by a look otherwise.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Look at a data file and write a commented experiment for it.

    Example: jaxtune new --data reviews.csv -o reviews.yaml
    """
    _call("new", json, debug, data=data, out=out, task=task, base=base, text=text, label=label)


@app.command(short_help="Everything short of step 1: does it all fit?")
def check(experiment: ExperimentFile, overrides: Overrides = None, json: Json = False, debug: Debug = False) -> None:
    """Do everything short of step 1: settings, files, labels, lengths, shapes, and whether model, task and data fit.

    Example: jaxtune check configs/quickstart.yaml
    """
    _call("check", json, debug, experiment=experiment, overrides=overrides or [])


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
    _call("preview", json, debug, experiment=experiment, overrides=overrides or [], count=count, split=split)


@app.command(short_help="Fine-tune, evaluate, report, export.")
def train(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    runs_dir: Annotated[str, typer.Option(metavar="DIR", help="Where the run folder is made: a folder or a bucket.")] = "runs",
    name: Annotated[str | None, typer.Option(help="Name of the run folder, instead of the experiment's name.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fine-tune, evaluate the best checkpoint on the test split, write the report and export the model.

    Example: jaxtune train configs/quickstart.yaml seed=1 phases.1.epochs=3
    """
    _call("train", json, debug, experiment=experiment, overrides=overrides or [], runs_dir=runs_dir, name=name)


@app.command(short_help="Go on with an interrupted run.")
def resume(run: Run, json: Json = False, debug: Debug = False) -> None:
    """Go on with a run that was interrupted, from its last checkpoint; a run that is done stays as it is.

    Example: jaxtune resume runs/quickstart
    """
    _call("resume", json, debug, run_folder=run)


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
    _call("evaluate", json, debug, run_folder=run, split=split, checkpoint=checkpoint)


@app.command(short_help="Labels and probabilities for new data.")
def predict(
    run: Run,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="New data of the same kind: a file or a folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="A .csv, .jsonl or .parquet file to write.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write labels and probabilities for new data.

    Example: jaxtune predict runs/quickstart new.csv -o predictions.csv
    """
    _call("predict", json, debug, run_folder=run, source=source, out=out)


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
    _call("export", json, debug, run_folder=run, out=out)


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
    _call("describe", json, debug, thing=thing, schema=schema)


@app.command(short_help="Versions, devices, missing extras, room.")
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Show versions, devices, missing extras and room on this machine.

    Example: jaxtune doctor --json
    """
    _call("doctor", json, debug)


def _call(command: str, as_json: bool, debug: bool, **arguments: Any) -> None:
    """Runs `jaxtune.cli.<command>.run(output, ...)`, which prints for people and returns what --json prints."""
    output = Output(as_json)
    with output.stdout_for_json() as stdout:
        try:
            if "experiment" in arguments:
                _judge(arguments["experiment"], arguments["overrides"])
            result = import_module(f"jaxtune.cli.{command}").run(output, **arguments)
            if as_json:
                write_json(result, stdout)
            return
        except BrokenPipeError:
            code = _nobody_reads()
        except (Exception, KeyboardInterrupt) as raised:
            error = as_user_error(raised) if isinstance(raised, Exception) else raised
            code = exit_code(error)
            if debug:
                import traceback

                traceback.print_exception(raised)
            _tell(error, code, stdout if as_json else None, debug)
    raise typer.Exit(code)


def _judge(experiment: Path, overrides: Sequence[str]) -> None:
    """Before the command's own imports, so that a slip in the YAML is answered without jax, and a wrong setting without the rest."""
    from jaxtune.config.read import read

    read(experiment, overrides, "jaxtune.experiment:Experiment")


def _tell(error: BaseException, code: int, json_to: Any, debug: bool) -> None:
    if isinstance(error, JaxtuneError):
        print_error(str(error))
        more: dict[str, Any] = {}
    elif isinstance(error, KeyboardInterrupt):
        print_error("interrupted")
        more = {}
    else:
        report = None if debug else crash_report(error)
        kept = f"; the traceback is in {report}" if report else ""
        print_error(f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (not foreseen by jaxtune{kept})")
        more = {"traceback": str(report)} if report else {}
    if json_to is not None:
        write_json(error_object(error, code, **more), json_to)


def _nobody_reads() -> int:
    """After `jaxtune ... | head`: what is still in the buffer goes nowhere, without a word at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # as the shell names a process that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code.

    Components of the user (`kind: my_module:Mine`) are found in the current folder, after everything that is installed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        code = app(words, prog_name="jaxtune", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _nobody_reads()
    except typer.Abort:
        return 130
    except TyperException as error:
        message = error.format_message()
        if "--json" in words:
            write_json(error_object(JaxtuneError(message), 2, type="UsageError"), sys.stdout)
        print_error(f"{message.removesuffix('.')}{' See' if message.endswith('?') else '; see'} jaxtune {_named(words)}--help")
        return 2
    return code if isinstance(code, int) else 0


def _named(words: Sequence[str]) -> str:
    """The command that was meant, for the hint at its help."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return f"{words[0]} " if words and words[0] in known else ""
