from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jaxtune.cli import doctor
from jaxtune.cli.main import main

CPU = [{"platform": "cpu", "kind": "cpu", "id": 0}]
ROOT = Path(__file__).resolve().parents[2]


def test_the_extras_are_those_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == set(doctor.EXTRAS)
    for name, (parts, serves) in doctor.EXTRAS.items():
        named = {line.replace("[", ">").split(">")[0].lower() for line in extras[name]}
        assert serves and (name in ("cuda", "tpu") or {part.lower() for part in parts} <= named)


def test_the_doctor_tells_of_this_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optuna" else "1.0")
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["versions"]["jax"] and {device["platform"] for device in told["devices"]} == {"cpu"}
    assert told["missing_extras"] == {"search": {"packages": ["optuna"], "serves": "hyperparameter search"}}
    assert told["machine"]["cores"] > 0 and told["machine"]["memory_gib"] > 0.5 and told["machine"]["disk_free_gib"] > 0
    monkeypatch.setattr(doctor, "ask_jax", lambda: (CPU * 2, []))
    monkeypatch.setattr(doctor, "find_accelerators", lambda: ["NVIDIA H100"])
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "jax-cuda13-plugin" else "1.0")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "devices: 2 x cpu; found on this machine: NVIDIA H100" in text
    assert "problem: NVIDIA H100 is here, but jax runs on the CPU; pip install 'jaxtune[cuda]'" in text


@pytest.mark.parametrize(
    ("seen", "installed", "platforms", "advice"),
    [
        ("NVIDIA A100", "", "", "pip install 'jaxtune[cuda]'"),
        ("TPU (/dev/accel0)", "jax-cuda13-plugin", "", "pip install 'jaxtune[tpu]'"),
        ("NVIDIA A100", "jax-cuda13-plugin", "cpu", "JAX_PLATFORMS=cpu tells it to; unset it"),
        ("TPU (/dev/accel0)", "libtpu", "", "its plugin is installed but does not start; python -c 'import jax; jax.devices()' says why"),
    ],
)
def test_an_accelerator_that_is_not_used(seen: str, installed: str, platforms: str, advice: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "1" if name == installed else None)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert doctor.unused_accelerators([seen], CPU) == [f"{seen} is here, but jax runs on the CPU; {advice}"]
    assert doctor.unused_accelerators([seen], [{"platform": "gpu", "kind": "x", "id": 0}]) == []
    assert doctor.unused_accelerators([], CPU) == []


def test_accelerators_are_found_by_driver_or_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in doctor._TPU_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.find_accelerators(tmp_path) == []
    for name in ("nvidia0", "nvidiactl", "vfio/vfio", "vfio/0"):
        (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dev" / name).touch()
    assert doctor.find_accelerators(tmp_path) == [f"NVIDIA device {tmp_path}/dev/nvidia0"]  # vfio alone may be anything
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert doctor.find_accelerators(tmp_path)[1] == f"TPU ({tmp_path}/dev/vfio/0)"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    listed = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\nGPU 1: Tesla T4 (UUID: GPU-2)\n"
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, listed, ""))
    assert doctor.find_accelerators(tmp_path)[:2] == ["NVIDIA H100 80GB HBM3", "NVIDIA Tesla T4"]


def test_a_jax_that_hangs_or_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def hang(*words: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(doctor.subprocess, "run", hang)
    assert doctor.ask_jax(2.0) == ([], ["jax did not list its devices within 2 s; does another process hold the accelerator?"])
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: Unable to initialize backend 'cuda'\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: failed)
    assert doctor.ask_jax() == ([], ["jax does not start: RuntimeError: Unable to initialize backend 'cuda'"])
