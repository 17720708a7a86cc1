"""The command line: from the words to an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from jaxtune.cli import run_commands as run_commands
from jaxtune.cli import tuning_commands as tuning_commands
from jaxtune.cli.calling import app, command_names, nobody_reads
from jaxtune.cli.output import error_object, print_error, write_json
from jaxtune.cli.process import start_again
from jaxtune.core.errors import JaxtuneError


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


def entry() -> int:
    """The installed command."""
    start_again()
    return main()


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
        return nobody_reads()
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
    return f"{words[0]} " if words and words[0] in command_names() else ""
