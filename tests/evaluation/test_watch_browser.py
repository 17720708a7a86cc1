"""The live page in a real browser: curves are drawn, no script error, no request to anywhere else, and no name of a run is executed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading

import pytest
from made_advice import Made
from test_report_browser import BROWSERS, FLAGS, asked_by_the_page

from jaxtune.evaluation.watch_server import Server

ATTACK = "<img src=x onerror=document.body.dataset.ran='yes'>"
REASON = "<script>document.body.dataset.ran = 'yes'; console.error('ran')</script>"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], list[str], str]:
    """(final document, console, requests, the server's address)."""
    root, profile = tmp_path_factory.mktemp("watch"), tmp_path_factory.mktemp("profile")
    Made().write(root / ATTACK)
    Made(steps=60, state={"status": "failed", "exit_code": 71, "reason": REASON}).write(root / "second")
    Made(steps=80).write(root / "a-name-that-goes-on-and-on" / "third")
    (root / ATTACK / "report.html").write_text("<p>report", encoding="utf-8")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.fail(f"no browser ({', '.join(BROWSERS)}): run scripts/test.sh as root, or install one (Debian: apt-get install chromium)")
    flags = [flag.replace("MAP * ~NOTFOUND", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1") for flag in FLAGS]
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        log = profile / "net.json"
        command = [
            browser,
            *flags,
            f"--user-data-dir={profile}",
            f"--log-net-log={log}",
            "--virtual-time-budget=5000",
            "--window-size=1200,1000",
        ]
        done = subprocess.run([*command, "--dump-dom", server.address], capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert "</html>" in done.stdout, f"the browser gave no document; it said: {done.stderr[-2000:]}"
    console = re.findall(r":CONSOLE[:(].*?\] (.*)", done.stderr)
    return done.stdout, console, asked_by_the_page(json.loads(log.read_text(encoding="utf-8"))), server.address


def test_it_draws_every_run_and_says_so(opened: tuple[str, list[str], list[str], str]):
    document = opened[0]
    assert "3 runs, 0 running" in document
    assert document.count('class="curve"') == 9 and document.count('class="curve dashed"') == 3
    assert all(title in document for title in (">Loss<", ">Validation accuracy<", ">Learning rate<"))
    assert document.count('href="report?id=') == 1


def test_no_error_and_no_request_leaves_the_page(opened: tuple[str, list[str], list[str], str]):
    _, console, requests, address = opened
    assert console == []
    assert any(request.startswith(f"{address}runs.json") for request in requests)
    assert all(request.startswith(address) for request in requests), requests


def test_what_runs_are_called_is_never_executed(opened: tuple[str, list[str], list[str], str]):
    document = opened[0]
    assert "data-ran" not in document and "<img" not in re.sub(r'="[^"]*"', "", document)
    assert "&lt;img src=x onerror" in document and "&lt;script&gt;document.body" in document
