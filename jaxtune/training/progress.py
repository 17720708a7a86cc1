"""What a person sees while training: a panel that stays in place on a terminal, a plain line every few seconds elsewhere.

The loop yields events and knows nothing of this; the panel only reads them, so a broken terminal or a redirected output cannot change
a training.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from jaxtune.training.loop import Decided, Evaluated, Event, Saved, Stepped

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Mode = Literal["auto", "live", "plain", "quiet"]
REFRESH_PER_SECOND = 4
SMOOTHING = 0.95  # of the loss, per step
WINDOW_SECONDS = 30.0  # over which speeds are measured
TWO_COLUMNS = 72  # a panel at least this wide shows two numbers in a row


@dataclass(frozen=True)
class Leg:
    """One phase as the panel announces it."""

    name: str
    steps: int
    steps_per_epoch: float | None = None


@dataclass
class Numbers:
    """Everything that is shown, gathered from events."""

    best_name: str
    step: int = 0
    rate: float = math.nan
    gradient_norm: float = math.nan
    skipped: int = 0
    last: tuple[float, int] | None = None  # value of the deciding metric and its step
    best: tuple[float, int] | None = None
    saving: int | None = None  # a save that has begun and is not known to be durable
    durable: tuple[int, float] | None = None  # step and time (seconds since 1970) of the last durable checkpoint
    status: str = ""
    step_seconds: float = 0.0  # of all steps but those that compiled
    other_seconds: float = 0.0  # of evaluations and saves
    _loss: float = 0.0
    _loss_weight: float = 0.0
    _recent: deque[Stepped] = field(default_factory=deque)

    def take(self, event: Event) -> None:
        if isinstance(event, Stepped):
            self._take_step(event)
        elif isinstance(event, Evaluated):
            self.other_seconds += event.seconds
            value = event.metrics.get(self.best_name)
            if isinstance(value, int | float):
                self.last = (float(value), event.step)
                self.best = self.last if event.is_best else self.best
        elif isinstance(event, Saved):
            self.other_seconds += event.seconds
            self.saving = event.step

    def _take_step(self, event: Stepped) -> None:
        self.step, self.rate, self.gradient_norm, self.status = event.step, event.learning_rate, event.gradient_norm, ""
        self.skipped += not event.finite
        if math.isfinite(event.loss):
            self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * event.loss
            self._loss_weight = SMOOTHING * self._loss_weight + (1 - SMOOTHING)
        if event.compiled:
            return
        self.step_seconds += event.seconds
        self._recent.append(event)
        while len(self._recent) > 2 and sum(step.seconds for step in self._recent) > WINDOW_SECONDS:
            self._recent.popleft()

    def take_durable(self, step: int, when: float) -> None:
        self.durable = (step, when)
        if self.saving is not None and self.saving <= step:
            self.saving = None

    @property
    def loss(self) -> float:
        """Smoothed over about 20 steps; the mean of fewer at the beginning."""
        return self._loss / self._loss_weight if self._loss_weight else math.nan

    def per_second(self, count: Callable[[Stepped], float]) -> float:
        """A count of the recent steps per second of their time."""
        seconds = sum(step.seconds for step in self._recent)
        return sum(map(count, self._recent)) / seconds if seconds > 0 else math.nan

    @property
    def wait_share(self) -> float:
        """Share of the steps' time in which the loop waited for data."""
        return min(1.0, self.per_second(lambda step: step.wait_seconds)) if self._recent else math.nan

    def seconds_left(self, total_steps: int) -> float:
        """At the recent speed, with evaluations and saves as often and as long as so far."""
        speed = self.per_second(lambda step: 1.0)
        if not speed > 0:
            return math.nan
        overhead = self.other_seconds / self.step_seconds if self.step_seconds > 0 else 0.0
        return max(0, total_steps - self.step) / speed * (1.0 + overhead)


class Panel:
    """Shows a training; a context manager.

    Args:
        total_steps: optimizer steps of the run, when no phase ends early.
        console: a rich console; default: standard output.
        mode: live redraws a panel, plain writes lines without control characters, quiet writes nothing; auto is live on a terminal
            and plain elsewhere. Evaluations and decisions are lines in both, so that they can be read later.
        title: name of the run.
        legs: the phases in order.
        best: the metric that decides which checkpoint is best.
        every_seconds: time between plain lines about steps.
    """

    def __init__(
        self,
        total_steps: int,
        console: Console | None = None,
        mode: Mode = "auto",
        *,
        title: str = "training",
        legs: Sequence[Leg] = (),
        best: str = "loss",
        every_seconds: float = 10.0,
        now: Callable[[], float] = time.time,
    ):
        from rich.console import Console

        self.total_steps, self.title, self.legs, self.every_seconds, self.now = total_steps, title, tuple(legs), every_seconds, now
        self.console = console or Console()
        self.mode: Mode = mode if mode != "auto" else "live" if _is_terminal(self.console) else "plain"
        self.numbers = Numbers(best)
        self._leg, self._leg_start = 0, 0
        self._told = -math.inf  # when the last plain line about a step was written
        self._lock = threading.Lock()  # the live display draws from a thread of its own
        self._live: Any = None

    def __enter__(self) -> Self:
        if self.mode == "live":
            from rich.live import Live

            self._live = Live(
                console=self.console, get_renderable=self.render, refresh_per_second=REFRESH_PER_SECOND, vertical_overflow="crop"
            )
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # -- what comes in --------------------------------------------------------------------------------------------------

    def begin_phase(self, number: int, step: int, done: int = 0) -> None:
        """Phase `number` (from 0) begins after `step` steps of the run; `done` of its own are behind it after a resume."""
        with self._lock:
            self._leg, self._leg_start, self.numbers.step = number, step, step + done
            if self.legs:
                self.total_steps = step + sum(leg.steps for leg in self.legs[number:])
        if self.legs:
            self._say(f"phase {number + 1}/{len(self.legs)}: {self.legs[number].name}, {self.legs[number].steps} steps")

    def event(self, event: Event) -> None:
        """Takes an event of the loop."""
        with self._lock:
            self.numbers.take(event)
        if isinstance(event, Stepped):
            if self.mode == "plain" and (self.now() - self._told >= self.every_seconds or event.step >= self.total_steps):
                self._told = self.now()
                self._say(self.plain_line())
        elif isinstance(event, Evaluated):
            self._say(f"{self._place(event.step)}  validation  {_metrics(event)}{'  (best so far)' if event.is_best else ''}")
        elif isinstance(event, Decided):
            self._say(f"{self._place(event.step)}  {_words(type(event.decision).__name__)}: {event.decision.reason}")

    def status(self, text: str) -> None:
        """What is being done when it is no step, e.g. "compiling ..."; the next step takes it away."""
        with self._lock:
            changed, self.numbers.status = text != self.numbers.status, text
        if changed and text and self.mode == "plain":
            self._say(text)

    def checkpoint(self, step: int, when: float) -> None:
        """The checkpoint of `step` is durable since `when` (seconds since 1970)."""
        with self._lock:
            self.numbers.take_durable(step, when)

    # -- what goes out --------------------------------------------------------------------------------------------------

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of everything there is to show about now, apart from place and time left."""
        n = self.numbers
        tokens = n.per_second(lambda step: step.tokens)
        shown = [
            ("loss", _number(n.loss)),
            ("rate", f"{n.rate:.2e}" if math.isfinite(n.rate) else ""),
            ("gradient norm", _number(n.gradient_norm)),
            ("examples/s", _count(n.per_second(lambda step: step.examples))),
            ("tokens/s", _count(tokens) if tokens > 0 else ""),
            ("data wait", f"{n.wait_share:.0%}" if math.isfinite(n.wait_share) else ""),
            (f"last {n.best_name}", f"{_number(n.last[0])} @ {n.last[1]}" if n.last else ""),
            (f"best {n.best_name}", f"{_number(n.best[0])} @ {n.best[1]}" if n.best else ""),
            ("checkpoint", f"{n.durable[0]}, {_duration(max(0.0, self.now() - n.durable[1]))} ago" if n.durable else ""),
            ("saving", f"step {n.saving}" if n.saving is not None else ""),
            ("skipped steps", str(n.skipped) if n.skipped else ""),
        ]
        return [(name, value) for name, value in shown if value]

    def plain_line(self) -> str:
        """Everything in one line without control characters."""
        left = self.numbers.seconds_left(self.total_steps)
        parts = [self._place(self.numbers.step), self._phase(), *(f"{name} {value}" for name, value in self.facts())]
        parts += [f"{_duration(left)} left"] if math.isfinite(left) else []
        return "  ".join(part for part in parts if part)

    def render(self) -> RenderableType:
        """The panel as it is drawn now, for any width."""
        from rich import box
        from rich.console import Group
        from rich.panel import Panel as Frame
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            facts, place, left = self.facts(), self._place(self.numbers.step), self.numbers.seconds_left(self.total_steps)
            phase, status, step, total = self._phase(), self.numbers.status, self.numbers.step, self.total_steps
        pairs = 2 if self.console.width >= TWO_COLUMNS else 1
        grid = Table.grid(padding=(0, 1), expand=True)
        for _ in range(pairs):
            grid.add_column(no_wrap=True, overflow="ellipsis", style="dim", max_width=24)
            grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for start in range(0, len(facts), pairs):
            cells: list[str | Text] = []
            for name, value in facts[start : start + pairs]:
                cells += [name, Text(value, style="red" if name == "skipped steps" else "bold")]
            grid.add_row(*cells)
        over = Table.grid(expand=True)
        over.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        over.add_column(no_wrap=True, justify="right")
        over.add_row(place, f"{_duration(left)} left" if math.isfinite(left) else "")
        bar = Table.grid(expand=True)  # a bar by itself does not end its line
        bar.add_row(ProgressBar(total=max(1, total), completed=min(step, total)))
        lines: list[RenderableType] = [over, bar, grid]
        if status:
            lines.append(Text(status, style="yellow", no_wrap=True, overflow="ellipsis"))
        room = max(8, self.console.width - 8)
        frame_title, frame_phase = (Text(text, style="bold", no_wrap=True, overflow="ellipsis") for text in (self.title, phase))
        frame_title.truncate(room, overflow="ellipsis")
        frame_phase.truncate(room, overflow="ellipsis")
        return Frame(
            Group(*lines), box=box.ROUNDED, title=frame_title, title_align="left",
            subtitle=frame_phase if phase else None, subtitle_align="left",
        )  # fmt: skip

    def _say(self, line: str) -> None:
        """A line that stays: above the panel, or as it is."""
        if self.mode == "live":
            self.console.print(line, markup=False, highlight=False)
        elif self.mode == "plain":
            print(line, file=self.console.file, flush=True)

    def _place(self, step: int) -> str:
        return f"step {step}/{self.total_steps} ({step / max(1, self.total_steps):.0%})"

    def _phase(self) -> str:
        if not self.legs:
            return ""
        leg = self.legs[self._leg]
        many = f"phase {self._leg + 1}/{len(self.legs)}: {leg.name}" if len(self.legs) > 1 else leg.name
        if not leg.steps_per_epoch:
            return many
        return f"{many}, epoch {(self.numbers.step - self._leg_start) / leg.steps_per_epoch:.1f}"


def _is_terminal(console: Console) -> bool:
    """A real one: FORCE_COLOR makes rich take a pipe for a terminal, but nothing can be redrawn in a pipe."""
    isatty = getattr(console.file, "isatty", None)
    return bool(isatty and isatty()) and not console.is_dumb_terminal


def _metrics(event: Evaluated) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in event.metrics.items() if isinstance(value, int | float))


def _words(name: str) -> str:
    """ScaleRate -> scale rate."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _number(value: float) -> str:
    """Four significant digits; nothing for a number that is not there yet."""
    return "" if math.isnan(value) else f"{value:.4g}"


def _count(value: float) -> str:
    if math.isnan(value):
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _duration(seconds: float) -> str:
    """45 s, 2 min 10 s, 1 h 05 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
