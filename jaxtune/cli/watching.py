"""What `train` and `resume` show: the tables before the first step, the panel while it runs, the result and where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtune.checkpoint.store import Durable
from jaxtune.cli.output import Output
from jaxtune.evaluation.advice_file import read_advice
from jaxtune.recorder import Adjusted, Measured, PhaseStarted, Resumed
from jaxtune.run import Result
from jaxtune.session import Compiled
from jaxtune.training.loop import Decided, Evaluated, Saved, Stepped
from jaxtune.training.parameters import Row
from jaxtune.training.progress import Panel

SHOWN_ADVICE = 3


@contextmanager
def watching(output: Output) -> Iterator[Callable[[Any], None]]:
    """A watch for `run` and `resume`: a panel on a terminal, plain lines elsewhere, nothing with --json."""
    watch = Watch(output)
    try:
        yield watch
    finally:
        watch.close()


class Watch:
    """Sorts a run's events to the panel and to lines that stay."""

    def __init__(self, output: Output):
        self.output = output
        self.panel: Panel | None = None

    def close(self) -> None:
        if self.panel is not None:
            self.panel.__exit__()

    def __call__(self, event: Any) -> None:
        if isinstance(event, PhaseStarted):
            self.phase(event)
        elif isinstance(event, Compiled):
            self.tell(compiled_line(event))
        elif isinstance(event, Resumed):
            self.tell(f"going on after step {event.step}")
            for step, why in event.rejected:
                self.tell(f"checkpoint of step {step} was damaged and set aside: {why}")
        elif isinstance(event, Adjusted):
            self.tell(f"{'not adjusted' if event.problems else 'adjusted'} after step {event.step}: {' '.join(event.changes)}")
            for problem in event.problems:
                self.tell(f"  {problem}")
        elif isinstance(event, Measured):
            self.close()
            self.panel = None
            numbers = "  ".join(f"{name} {value:.4f}" for name, value in event.metrics.items() if isinstance(value, float))
            self.output.say(f"{event.split} of the best checkpoint (step {event.step}): {numbers}")
        elif isinstance(event, Durable) and self.panel is not None:
            self.panel.checkpoint(event.step, event.time)
        elif isinstance(event, Stepped | Evaluated | Saved | Decided) and self.panel is not None:
            self.panel.event(event)

    def phase(self, event: PhaseStarted) -> None:
        """The table of what trains, above the panel."""
        if self.panel is None:
            self.panel = Panel(
                event.total_steps, mode="quiet" if self.output.as_json else "auto", title=event.run, legs=event.legs, best=event.best
            )
            self.panel.__enter__()
        self.panel.total_steps, self.panel.legs = event.total_steps, event.legs  # an adjustment may have changed them
        self.panel.begin_phase(event.phase, event.step, event.done)
        for line in freezing_table(event.table):
            self.tell(line)
        self.panel.status("compiling the step (up to a minute the first time; kept for later runs) ...")

    def tell(self, line: str) -> None:
        if self.panel is not None and self.panel.mode == "live":
            self.panel.console.print(line, markup=False, highlight=False)
        else:
            self.output.say(line)


def freezing_table(rows: tuple[Row, ...]) -> list[str]:
    """Pattern, arrays, parameters and share, one line each."""
    head = ("trains", "arrays", "parameters", "share")
    cells = [head, *((row.pattern, str(row.arrays), f"{row.parameters:,}", f"{row.share:.2%}") for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return ["  " + row[0].ljust(widths[0]) + "".join("  " + row[i].rjust(widths[i]) for i in range(1, 4)) for row in cells]


def compiled_line(event: Compiled) -> str:
    width = "" if event.width is None else f" x {event.width} tokens"
    return (
        f"  step of {event.rows} rows{width}: {event.flops / 1e9:,.1f} GFLOP, {event.memory.peak / 2**20:,.0f} MiB "
        f"({event.memory.temporaries / 2**20:,.0f} MiB of it temporary), compiled in {event.seconds:.1f} s"
    )


def show_result(output: Output, result: Result) -> dict[str, Any]:
    """Where everything lies, and the numbers for --json."""
    numbers = result.numbers
    output.say()
    output.say(
        f"{numbers['steps']} steps in {numbers['seconds']:.0f} s, {numbers['examples_per_second']:.1f} examples/s, "
        f"peak memory {numbers['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    for what, path in (
        ("run", result.folder),
        ("model", result.export),
        ("adapter", result.export / "adapter"),
        ("report", result.folder / "report.html"),
    ):
        if path.exists():
            output.say(f"{what:<7} {path}")
    advice = read_advice(result.folder)
    for one in advice[:SHOWN_ADVICE]:
        output.say(f"advice  {one.line}")
    if len(advice) > SHOWN_ADVICE:
        output.say(f"        and {len(advice) - SHOWN_ADVICE} more in the report")
    return {"run": str(result.folder), "export": str(result.export), **numbers, "advice": [one.as_json() for one in advice]}
