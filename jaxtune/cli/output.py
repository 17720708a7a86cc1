"""What a command says: words for people, or one JSON object on stdout; errors on stderr, and where a crash report went.

A command returns its result as a dict and prints for people on the way. With --json stdout carries the dict alone: whatever
is printed meanwhile, by us or by a library, goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxtune.core.errors import ConfigError, JaxtuneError


class Output:
    """Where a command prints."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.as_json:
            print(text)

    def write(self, text: str) -> None:
        """A piece of a line for people, at once."""
        if not self.as_json:
            print(text, end="", flush=True)

    def table(self, rows: Sequence[Sequence[Any]], head: Sequence[str] = ()) -> None:
        """Columns for people; on a terminal the last one wraps within its column."""
        if self.as_json or not rows:
            return
        cells = [[str(cell) for cell in row] for row in ([head, *rows] if head else rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))][:-1]
        indent = sum(widths) + 2 * len(widths)
        room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else 0
        for row in cells:
            start = "".join(cell.ljust(width + 2) for cell, width in zip(row, widths, strict=False))
            parts = textwrap.wrap(row[-1], room) if room > 20 else [row[-1]]
            print((start + ("\n" + " " * indent).join(parts)).rstrip())

    @contextlib.contextmanager
    def stdout_for_json(self) -> Iterator[TextIO]:
        """The real stdout, while everything that is printed goes to stderr; nothing changes without --json."""
        if not self.as_json:
            yield sys.stdout
            return
        real = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield real


def coloured(file: TextIO | None = None) -> bool:
    """Whether colours show there (default: stdout) and are wanted."""
    return (file or sys.stdout).isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write_json(value: Mapping[str, Any], file: TextIO) -> None:
    """One line of strict JSON: no NaN, NumPy numbers as numbers, everything unknown as text."""
    from jaxtune.core.files import plain

    print(json.dumps(plain(value), ensure_ascii=False, allow_nan=False), file=file, flush=True)


def error_object(error: BaseException, code: int, **more: Any) -> dict[str, Any]:
    """`{"error": {...}}`, the one object on stdout of a command that failed."""
    problems = getattr(error, "problems", None)
    facts = {"type": type(error).__name__, "exit_code": code, "message": str(error)}
    return {"error": facts | ({"problems": list(problems)} if problems else {}) | more}


def print_error(message: str) -> None:
    """`error: ...` on stderr, red on a terminal; several problems stand below each other."""
    word = "\033[31merror:\033[0m" if coloured(sys.stderr) else "error:"
    first, *rest = message.split("\n") if message else [""]
    lines = [f"{word} {first}"] if not rest else [f"{word} {len(rest) + 1} problems", *(f"  {line}" for line in (first, *rest))]
    print("\n".join(lines), file=sys.stderr, flush=True)


def as_user_error(error: Exception) -> Exception:
    """Pydantic's error about an object built from Python, as the one line per problem that users see everywhere else."""
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        return error
    found: Any = error
    return ConfigError([f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found.errors()])


def crash_report(error: BaseException) -> Path | None:
    """Writes the traceback, secrets taken out, beside other temporary files."""
    from jaxtune.core.redact import redact

    text = redact("".join(traceback.format_exception(error)))
    try:
        handle, name = tempfile.mkstemp(prefix="jaxtune-crash-", suffix=".txt", text=True)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        sys.stderr.write(text)
        return None
    return Path(name)


def exit_code(error: BaseException) -> int:
    if isinstance(error, JaxtuneError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1
