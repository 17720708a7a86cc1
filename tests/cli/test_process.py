from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtune.cli import main as main  # which registers them
from jaxtune.cli.calling import command_names
from jaxtune.cli.process import COMPUTING, HUGE_PAGES, VARIABLE, wish
from jaxtune.core.heap import KEEPS

TOLD = "import os, sys; sys.argv = ['jaxtune', *sys.argv[1:]]; from jaxtune.cli import process; process.start_again(); "
TOLD += "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"


def test_who_wants_what():
    kept = f"{HUGE_PAGES}:{KEEPS}"
    assert wish(["train", "x.yaml"], {}, "linux", False) == kept
    assert wish(["train", "x.yaml"], {}, "linux", True) == HUGE_PAGES  # temporaries lie on the accelerator
    assert wish(["train", "x.yaml"], {"JAX_PLATFORMS": "cpu"}, "linux", True) == kept
    assert wish(["check", "x.yaml"], {}, "linux", False) is None and wish([], {}, "linux", False) is None
    assert wish(["train"], {}, "darwin", False) is None
    assert wish(["train"], {VARIABLE: "glibc.malloc.arena_max=2"}, "linux", False) is None  # the user's own wish stands
    assert set(COMPUTING) <= set(command_names())


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is glibc's")
@pytest.mark.parametrize(("command", "expected"), [("train", f"{HUGE_PAGES}:{KEEPS}"), ("check", None)])
def test_the_process_stays_the_same(command: str, expected: str | None, tmp_path: Path):
    kept = {name: value for name, value in os.environ.items() if name != VARIABLE}
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD, command, "a b"], stdout=subprocess.PIPE, text=True, env=kept | {"JAX_PLATFORMS": "cpu"}
    )
    told, _ = process.communicate(timeout=60)
    assert told.strip() == f"{process.pid} {expected} {[command, 'a b']}"


def test_the_module_runs_through_it(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "jaxtune", "train", "none.yaml", "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "none.yaml" in json.loads(done.stdout)["error"]["message"]
