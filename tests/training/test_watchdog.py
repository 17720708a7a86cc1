"""A hang ends the process with code 70 and leaves the stacks; what is slow but within its budget goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxtune.training.watchdog import BUDGETS_SECONDS, Watchdog

CHILD = """
import ctypes, sys, threading, time
from pathlib import Path
from jaxtune.training import watchdog
mode, folder = sys.argv[1], Path(sys.argv[2])
watchdog._STARVED_SECONDS = 0.5 if mode == "starved" else 10.0
lock = threading.Lock()
def report(message):
    (folder / "told.txt").write_text(message)
    if mode == "deaf":
        time.sleep(60)
watchdog._REPORT_SECONDS = 0.5
def stuck_in_the_collective():
    if mode == "starved":
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock
    with lock, lock:
        pass
with watchdog.Watchdog(folder, {"step": 1.5, "evaluation": 5.0}, report, poll_seconds=0.1) as dog:
    print("READY", flush=True)
    if mode in ("stuck", "deaf", "starved"):
        with dog.section("step"):
            stuck_in_the_collective()
    if mode == "nested":
        with dog.section("evaluation"), dog.section("step"):
            time.sleep(60)
    for step in range(3):
        with dog.section("step"):
            time.sleep(0.6)
    with dog.section("step"):
        with dog.section("evaluation"):
            time.sleep(1.7)
        time.sleep(0.3)
    time.sleep(1.7)  # outside every section
print("done", flush=True)
"""


def run(mode, folder) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CHILD, mode, str(folder)], capture_output=True, text=True, timeout=40)


@pytest.mark.parametrize("mode", ["stuck", "deaf"])
def test_a_hang_ends_with_its_code_and_stacks(tmp_path, mode):
    done = run(mode, tmp_path)
    assert done.returncode == 70, done.stderr
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "hang: step did not end within 1.5 seconds" in stacks and "stuck_in_the_collective" in stacks
    assert f"the stacks of all threads are in {tmp_path}/stacks.txt" in done.stderr
    assert (tmp_path / "told.txt").read_text().startswith("hang: step")


def test_a_starved_interpreter_is_ended_too(tmp_path):
    done = run("starved", tmp_path)
    assert done.returncode == 1
    assert "stuck_in_the_collective" in (tmp_path / "stacks.txt").read_text()


def test_sections_nest_and_what_is_slow_goes_on(tmp_path):
    done = run("fine", tmp_path)
    assert (done.returncode, done.stdout) == (0, "READY\ndone\n"), done.stderr
    assert not (tmp_path / "stacks.txt").exists()


def test_the_inner_budget_counts(tmp_path):
    assert run("nested", tmp_path).returncode == 70
    assert "hang: step did not end" in (tmp_path / "stacks.txt").read_text()


def test_a_stopped_process_does_not_hang(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", CHILD, "fine", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "READY\n"
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)  # longer than the budget
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == "done\n" and process.returncode == 0


def test_unknown_sections_are_refused(tmp_path):
    with Watchdog(tmp_path) as watchdog, pytest.raises(KeyError), watchdog.section("lunch"):
        pass
    assert set(BUDGETS_SECONDS) == {"load", "compile", "step", "evaluation", "save"}
