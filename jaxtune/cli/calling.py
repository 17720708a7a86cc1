"""How a command is called: the application, the arguments that commands share, and the one place where an error becomes a message and
an exit code.

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


def call(command: str, as_json: bool, debug: bool, **arguments: Any) -> None:
    """Runs `jaxtune.cli.<command>.run(output, ...)`, which prints for people and returns what --json prints."""
    output = Output(as_json)
    with output.stdout_for_json() as stdout:
        try:
            if "experiment" in arguments:
                judge(arguments["experiment"], arguments["overrides"])
            result = import_module(f"jaxtune.cli.{command}").run(output, **arguments)
            if as_json:
                write_json(result, stdout)
            return
        except BrokenPipeError:
            code = nobody_reads()
        except (Exception, KeyboardInterrupt) as raised:
            error = as_user_error(raised) if isinstance(raised, Exception) else raised
            code = exit_code(error)
            if debug:
                import traceback

                traceback.print_exception(raised)
            _tell(error, code, stdout if as_json else None, debug)
    raise typer.Exit(code)


def judge(experiment: Path, overrides: Sequence[str]) -> None:
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


def nobody_reads() -> int:
    """After `jaxtune ... | head`: what is still in the buffer goes nowhere, without a word at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # as the shell names a process that SIGPIPE ended


def command_names() -> tuple[str, ...]:
    """All commands, as they are typed."""
    return tuple(
        command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands if command.callback is not None
    )
