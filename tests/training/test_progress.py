"""What is shown while training: the panel at two widths, plain lines without control characters, numbers that add up."""

from __future__ import annotations

import io
import math
import re
import time
from typing import Any

import pytest
from rich.console import Console

from jaxtune.training.loop import Decided, Evaluated, Saved, Stepped
from jaxtune.training.progress import Leg, Mode, Panel, _count, _duration, _is_terminal
from jaxtune.training.stopping.base import ScaleRate, Stop

LEGS = (Leg("head.*", 200, 50), Leg("*", 400, 50))
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")

WIDE = """\
╭─ quickstart ─────────────────────────────────────────────────────────────────╮
│ step 261/600 (44%)                                           2 min 39 s left │
│ ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━                                            │
│ loss          0.5                     rate          4.70e-05                 │
│ gradient norm 1.234                   examples/s    80.0                     │
│ tokens/s      10.4k                   data wait     2%                       │
│ last accuracy 0.97 @ 260              best accuracy 0.9731 @ 250             │
│ checkpoint    250, 20 s ago           saving        step 260                 │
│ skipped steps 1                                                              │
│ compiling for 128 tokens ...                                                 │
╰─ phase 2/2: *, epoch 1.2 ────────────────────────────────────────────────────╯
"""
NARROW = """\
╭─ quickstart ─────────────────────────╮
│ step 261/600 (44%)   2 min 39 s left │
│ ━━━━━━━━━━━━━━━╸                     │
│ loss          0.5                    │
│ rate          4.70e-05               │
│ gradient norm 1.234                  │
│ examples/s    80.0                   │
│ tokens/s      10.4k                  │
│ data wait     2%                     │
│ last accuracy 0.97 @ 260             │
│ best accuracy 0.9731 @ 250           │
│ checkpoint    250, 20 s ago          │
│ saving        step 260               │
│ skipped steps 1                      │
│ compiling for 128 tokens ...         │
╰─ phase 2/2: *, epoch 1.2 ────────────╯
"""


def stepped(step: int, **changes: Any) -> Stepped:
    usual = {
        "step": step, "loss": 0.5, "learning_rate": 4.7e-5, "gradient_norm": 1.234, "finite": True, "examples": 32, "tokens": 4160,
        "seconds": 0.4, "wait_seconds": 0.01, "compiled": False,
    }  # fmt: skip
    return Stepped(**{**usual, **changes})


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def make(mode: Mode, width: int = 80, **more: Any) -> tuple[Panel, io.StringIO]:
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=more.pop("terminal", False), color_system=None, legacy_windows=False)
    return Panel(600, console, mode, title="quickstart", legs=LEGS, best="accuracy", now=more.pop("now", Clock()), **more), out


def train(panel: Panel) -> None:
    panel.begin_phase(1, 200)
    panel.status("compiling for 128 tokens ...")
    for step in range(201, 262):
        panel.event(stepped(step, finite=step != 230, loss=math.nan if step == 230 else 0.5, compiled=step == 201))
    panel.event(Evaluated(250, {"loss": 0.3, "accuracy": 0.9731, "f1_per_class": [0.9, 1.0]}, True, 2.0))
    panel.event(Evaluated(260, {"loss": 0.3, "accuracy": 0.97, "f1_per_class": [0.9, 1.0]}, False, 2.0))
    panel.event(Saved(260, 0.1))
    panel.checkpoint(250, 980.0)


@pytest.mark.parametrize(("width", "expected"), [(80, WIDE), (40, NARROW)])
def test_panel_at_two_widths(width: int, expected: str) -> None:
    panel, out = make("quiet", width)
    train(panel)
    panel.status("compiling for 128 tokens ...")
    panel.console.print(panel.render())
    assert out.getvalue() == expected


@pytest.mark.parametrize("width", [80, 40])
def test_panel_fits_before_the_first_step_and_with_long_names(width: int) -> None:
    panel, out = make("quiet", width)
    panel.title = "a run with a very long name, much longer than any terminal that anybody would ever open for it, or so"
    panel.numbers.best_name = "mean_squared_error"
    panel.console.print(panel.render())
    panel.legs = (Leg("embeddings.*, layers.{0-11}.attn.*, layers.{0-11}.mlp.*, head.*, norm.*", 600, 50),)
    panel.event(Evaluated(1, {"mean_squared_error": 12345.678}, True, 1.0))
    panel.status("compiling " + "x" * 100)
    panel.console.print(panel.render())
    lines = out.getvalue().splitlines()
    assert len(lines) > 6 and {len(line) for line in lines} == {width}


def test_plain_lines_are_few_and_have_no_control_characters() -> None:
    clock = Clock()
    panel, out = make("plain", 40, now=clock, every_seconds=10.0)
    with panel:
        train(panel)
        panel.event(Decided(260, ScaleRate(0.5, "accuracy has not improved in 2 evaluations")))
        clock.time += 9.0
        panel.event(stepped(262))
        clock.time += 2.0
        panel.event(stepped(263))
        panel.event(Decided(263, Stop("the time budget is used up")))
    text = out.getvalue()
    assert not CONTROL.search(text)
    lines = text.splitlines()
    assert lines[0] == "phase 2/2: *, 400 steps"
    assert lines[1] == "compiling for 128 tokens ..."
    assert lines[2].startswith("step 201/600 (34%)  phase 2/2: *, epoch 0.0  loss 0.5  rate 4.70e-05  gradient norm 1.234")
    assert lines[3] == "step 250/600 (42%)  validation  loss 0.3  accuracy 0.9731  (best so far)"
    assert lines[4] == "step 260/600 (43%)  validation  loss 0.3  accuracy 0.97"
    assert lines[5] == "step 260/600 (43%)  scale rate: accuracy has not improved in 2 evaluations"
    assert lines[6].startswith("step 263/600") and "checkpoint 250, 31 s ago" in lines[6] and lines[6].endswith("left")
    assert lines[7:] == ["step 263/600 (44%)  stop: the time budget is used up"]


def test_the_last_step_is_always_told() -> None:
    panel, out = make("plain")
    for step in (598, 599, 600):
        panel.event(stepped(step))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["598/600", "600/600"]


def test_quiet_writes_nothing() -> None:
    panel, out = make("quiet")
    with panel:
        train(panel)
        panel.event(Decided(260, Stop("done")))
    assert out.getvalue() == ""


def test_live_redraws_and_leaves_the_last_panel_and_the_evaluations() -> None:
    panel, out = make("live", terminal=True)
    start = time.perf_counter()
    with panel:
        train(panel)
    seconds = time.perf_counter() - start
    text = out.getvalue()
    assert "\x1b[" in text and "validation  loss 0.3  accuracy 0.9731" in text
    assert any("╯" in line for line in text.splitlines()[-2:])
    assert text.count("╭─ quickstart") <= 8 + 4 * seconds  # not drawn for each of the 61 steps


def test_auto_is_live_only_on_a_real_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert Panel(1, Console(file=Terminal())).mode == "live"
    assert Panel(1, Console(file=io.StringIO())).mode == "plain"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Console(file=io.StringIO()).is_terminal and not _is_terminal(Console(file=io.StringIO()))
    monkeypatch.setenv("TERM", "dumb")
    assert Panel(1, Console(file=Terminal())).mode == "plain"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> str:
        out = io.StringIO()
        console = Console(width=80, file=out, force_terminal=True, color_system="standard", legacy_windows=False)
        panel = Panel(600, console, "quiet", legs=LEGS, best="accuracy", now=Clock())
        train(panel)
        panel.status("compiling")
        console.print(panel.render())
        return out.getvalue()

    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[\d;]+)m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.search(drawn())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(drawn())


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_loss_is_smoothed_without_a_bias_at_the_beginning() -> None:
    panel, _ = make("quiet")
    assert math.isnan(panel.numbers.loss)
    panel.event(stepped(1, loss=2.0))
    assert panel.numbers.loss == pytest.approx(2.0)
    panel.event(stepped(2, loss=math.inf))
    assert panel.numbers.loss == pytest.approx(2.0)
    panel.event(stepped(3, loss=1.0))
    assert 1.4 < panel.numbers.loss < 1.6
    for step in range(4, 200):
        panel.event(stepped(step, loss=1.0))
    assert panel.numbers.loss == pytest.approx(1.0, abs=1e-3)


def test_speed_leaves_out_steps_that_compiled_and_forgets_old_ones() -> None:
    panel, _ = make("quiet")
    panel.event(stepped(1, seconds=90.0, compiled=True))
    assert math.isnan(panel.numbers.per_second(lambda step: step.examples))
    panel.event(stepped(2, seconds=0.5))
    assert panel.numbers.per_second(lambda step: step.examples) == pytest.approx(64)
    for step in range(3, 103):
        panel.event(stepped(step, seconds=1.0, wait_seconds=0.25))
    assert panel.numbers.per_second(lambda step: step.examples) == pytest.approx(32)
    assert panel.numbers.wait_share == pytest.approx(0.25)


def test_time_left_counts_evaluations_and_saves() -> None:
    panel, _ = make("quiet")
    for step in range(1, 101):
        panel.event(stepped(step, seconds=0.1))
    assert panel.numbers.seconds_left(600) == pytest.approx(50)
    panel.event(Evaluated(100, {"accuracy": 0.5}, True, 4.0))
    panel.event(Saved(100, 1.0))
    assert panel.numbers.seconds_left(600) == pytest.approx(75)
    assert panel.numbers.seconds_left(90) == 0


def test_a_phase_that_ended_early_shortens_the_run() -> None:
    panel, out = make("quiet")
    panel.begin_phase(0, 0)
    assert panel.total_steps == 600
    panel.begin_phase(1, 120)
    assert panel.total_steps == 520
    panel.event(stepped(170))
    assert "phase 2/2: *, epoch 1.0" in panel.plain_line()
    assert out.getvalue() == ""


def test_a_save_is_shown_until_it_is_durable() -> None:
    panel, _ = make("quiet")
    panel.event(Saved(40, 0.1))
    assert ("saving", "step 40") in panel.facts()
    panel.checkpoint(20, 999.0)
    assert ("saving", "step 40") in panel.facts() and ("checkpoint", "20, 1 s ago") in panel.facts()
    panel.checkpoint(40, 1000.0)
    assert "saving" not in dict(panel.facts()) and dict(panel.facts())["checkpoint"] == "40, 0 s ago"


def test_status_goes_with_the_next_step() -> None:
    panel, _ = make("quiet")
    panel.status("compiling ...")
    assert panel.numbers.status == "compiling ..."
    panel.event(stepped(1))
    assert panel.numbers.status == ""


def test_words_for_numbers() -> None:
    assert [_duration(s) for s in (0, 59.4, 130, 3900, 100000)] == ["0 s", "59 s", "2 min 10 s", "1 h 05 min", "1 d 3 h"]
    assert [_count(n) for n in (3.14159, 512, 10400, 2.5e6, math.nan)] == ["3.1", "512", "10.4k", "2.5M", ""]
