"""Starting sets the flags once and says things from one host. In a process of its own: flags stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jaxtune.parallel import hosts

CODE = """
import sys, jax
from pathlib import Path
from jaxtune.parallel import hosts
first, second = Path(sys.argv[1]) / "a", Path(sys.argv[1]) / "b"
before = jax.config.jax_compilation_cache_dir
hosts.start(first)
assert jax.config.jax_compilation_cache_dir == str(first) != before and first.is_dir()
hosts.start(second)
assert jax.config.jax_compilation_cache_dir == str(first) and not second.exists()
jax.jit(lambda x: x + 1)(1.0)
hosts.say("hello")
"""


def test_start_twice(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr.splitlines()[-1] == "hello"


def test_one_host_agrees_with_itself() -> None:
    assert hosts.is_primary() and hosts.agree(3) == 3
