"""The report and the comparison in a real browser: no script error, no request, nothing from the data runs, and nothing sticks out on a telephone.

Chromium is told to find no host at all, so what it does on its own account (updates, time) stays on this machine.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_run import MadeRun

from jaxtune.evaluation.compare import compare
from jaxtune.evaluation.compare_page import write_page
from jaxtune.evaluation.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-quic", "--disable-sync"),
    *("--enable-logging=stderr", "--net-log-capture-mode=Everything"),
)
ATTACK = "<script>document.body.dataset.ran = 'yes'; console.error('ran')</script><img src='http://127.0.0.1:9/x.png' onerror='console.error(1)'>"
NAMES = (ATTACK, "an ordinary name", "a-name-without-any-place-to-break-it-which-goes-on-and-on")


@dataclass(frozen=True)
class Opened:
    """What became of a page: its final document, its console, and the addresses it asked for."""

    document: str
    console: list[str]
    requests: list[str]


def open_page(page: Path, profile: Path) -> Opened:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail(f"no browser ({', '.join(BROWSERS)}): run scripts/test.sh as root, or install one (Debian: apt-get install chromium)")
    log = profile / "net.json"
    command = [found, *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={log}", "--window-size=1600,900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, f"the browser gave no document; it said: {done.stderr[-2000:]}"
    console = re.findall(r":CONSOLE[:(].*?\] (.*)", done.stderr)
    return Opened(done.stdout, console, asked_by_the_page(json.loads(log.read_text(encoding="utf-8"))))


def asked_by_the_page(log: dict[str, Any]) -> list[str]:
    """Addresses of requests that have an origin; what the browser asks for itself has none."""
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [event["params"] for event in log["events"] if event["type"] == started and "url" in event.get("params", {})]
    return [params["url"] for params in found if params.get("initiator") != "not an origin"]


class Told:
    """Records with a hostile text and a picture."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        column = {ATTACK: ATTACK + str(row % 3), "number": row % 7}
        return {"text": ATTACK, "path": ATTACK, "image": np.full((8, 8, 3), row % 256, np.uint8), **column}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of every kind; class names and texts attack."""
    root = tmp_path_factory.mktemp("runs")
    runs = {
        "text": MadeRun(names=NAMES, base=ATTACK, checked=True),
        "labels": MadeRun(problem="multi_label", names=(ATTACK, "other")),
        "numbers": MadeRun(problem="regression", names=()),
        "images": MadeRun(domain="image", names=tuple(f"class number {i}" for i in range(25)), examples=500, checked=True),
    }
    pages = {name: write_report(made.write(root / name), Told()) for name, made in runs.items()}  # type: ignore[arg-type]
    other = MadeRun(names=NAMES, base="another", skill=1.5).write(root / f"other {ATTACK.replace('/', ' ')}")
    found = compare(root / "text", other)
    return pages | {"compare": write_page(found, root / "compare.html", Told())}  # type: ignore[arg-type]


def test_the_harness_sees_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><html><body>{ATTACK}</body></html>", encoding="utf-8")
    opened = open_page(page, tmp_path / "profile")
    assert any("ran" in line for line in opened.console)
    assert opened.requests == ["http://127.0.0.1:9/x.png"]
    assert 'data-ran="yes"' in opened.document


@pytest.mark.parametrize("name", ["text", "labels", "numbers", "images", "compare"])
def test_the_page_opens_without_errors_and_asks_for_nothing(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    opened = open_page(pages[name], tmp_path / "profile")
    assert opened.console == [] and opened.requests == []
    assert "data-ran" not in opened.document
    assert ("Settings that differ" if name == "compare" else "How to reproduce") in opened.document


@pytest.mark.parametrize("name", ["text", "images", "compare"])
def test_it_is_the_escaping_that_protects_and_not_the_policy_alone(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[name].read_text(encoding="utf-8"))
    assert count == 1
    page = tmp_path / "unguarded.html"
    page.write_text(text, encoding="utf-8")
    opened = open_page(page, tmp_path / "profile")
    assert opened.console == [] and opened.requests == [] and "data-ran" not in opened.document


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("name", ["text", "images", "compare"])
def test_nothing_sticks_out_sideways(name: str, width: int, pages: dict[str, Path], tmp_path: Path) -> None:
    # In a frame, because a window is never narrower than 500 pixels.
    frame = f'<iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{html.escape(pages[name].read_text(encoding="utf-8"))}"></iframe>'
    measure = (
        "onload = () => { const inside = document.querySelector('iframe').contentDocument; const out = [...inside.querySelectorAll('main *')]"
        f".filter(e => !e.closest('.scroll, svg') && e.getBoundingClientRect().right > {width}).map(e => e.outerHTML.slice(0, 80));"
        "document.body.dataset.size = inside.documentElement.scrollWidth + ' ' + out.join(' ') }"
    )
    page = tmp_path / "measured.html"
    page.write_text(f"<!doctype html><html><script>{measure}</script><body>{frame}</body></html>", encoding="utf-8")
    found = re.search(r'data-size="(\d+) ([^"]*)"', open_page(page, tmp_path / "profile").document)
    assert found and int(found[1]) == width and not found[2]
