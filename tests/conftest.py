"""Every test sees 8 fake CPU devices, raising rank promotion, caches kept in the checkout, and no model hub.

The device count is read when jax starts, so it stands before the import.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
os.environ["JAXTUNE_CACHE"] = str(Path(__file__).resolve().parents[1] / ".cache" / "tests")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest
import tiny_run

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).resolve().parents[1] / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A complete tiny model folder."""
    return tiny_run.write_model(tmp_path / "model")


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Path:
    """A text folder of 120 short texts in three classes."""
    return tiny_run.write_corpus(tmp_path / "texts")


@pytest.fixture
def tiny_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`tiny.yaml` with all it names, in an empty folder that becomes the current one."""
    monkeypatch.chdir(tmp_path)
    return tiny_run.write_all(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tiny_run.Trained:
    """One undisturbed run of the tiny experiment by the command line, made once for all test processes."""

    def make(folder: Path) -> None:
        tiny_run.write_all(folder)
        done = tiny_run.run("train", "tiny.yaml", "--json", folder=folder)
        done.write(folder / "done.json")

    folder = once(tmp_path_factory, "trained", make)
    return tiny_run.Trained(folder, tiny_run.Done.read(folder / "done.json"))


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of several pytest processes makes and the others wait for."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, complete = root / name, root / f"{name}.complete"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder
