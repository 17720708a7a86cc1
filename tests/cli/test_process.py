from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtune.cli import main as main  # which registers them
from jaxtune.cli.calling import command_names
from jaxtune.cli.process import COMPUTING, VARIABLE, WISH, wants_huge_pages

TOLD = "import os, sys; sys.argv = ['jaxtune', *sys.argv[1:]]; from jaxtune.cli import process; process.use_huge_pages(); "
TOLD += "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"


def test_who_wants_them():
    assert wants_huge_pages(["train", "x.yaml"], {}, "linux")
    assert not wants_huge_pages(["check", "x.yaml"], {}, "linux") and not wants_huge_pages([], {}, "linux")
    assert not wants_huge_pages(["train"], {}, "darwin")
    assert not wants_huge_pages(["train"], {VARIABLE: "glibc.malloc.arena_max=2"}, "linux")  # the user's own wish stands
    assert set(COMPUTING) <= set(command_names())


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is glibc's")
@pytest.mark.parametrize(("command", "expected"), [("train", WISH), ("check", None)])
def test_the_process_stays_the_same(command: str, expected: str | None, tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.Popen([sys.executable, "-c", TOLD, command, "a b"], stdout=subprocess.PIPE, text=True, env=kept)
    told, _ = process.communicate(timeout=60)
    assert told.strip() == f"{process.pid} {expected} {[command, 'a b']}"


def test_the_module_runs_through_it(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "jaxtune", "train", "none.yaml", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "none.yaml" in json.loads(done.stdout)["error"]["message"]
