"""`jaxtune doctor`: what this machine has, and what keeps jaxtune from using it.

jax is asked in a process of its own, because a driver that hangs must not hang the doctor.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxtune.cli.output import Output
from jaxtune.core.folders import cache_folder
from jaxtune.core.printable import printable

EXTRAS = {  # extra -> what is installed with it, what it serves
    "cuda": (("jax-cuda13-plugin",), "training on NVIDIA GPUs"),
    "tpu": (("libtpu",), "training on Google TPUs"),
    "search": (("optuna",), "hyperparameter search"),
    "track": (("tensorboardX",), "tracking: [{kind: tensorboard}]"),
    "test": (("pytest", "pytest-xdist", "hypothesis", "ruff", "pyright", "scikit-learn", "psutil"), "the tests of jaxtune itself"),
}
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "tokenizers", "safetensors", "pydantic")
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")  # jax itself sets TPU_SKIP_MDS_QUERY where there is none
_DEVICES = """
import json, jax
print(json.dumps([{"platform": d.platform, "kind": d.device_kind, "id": d.id} for d in jax.devices()]))
"""
_GIB = 1 << 30


def run(output: Output) -> dict[str, Any]:
    problems: list[str] = []
    versions = {name: _version(name) for name in SHOWN}
    missing = _missing_packages()
    if missing:
        problems.append(f"packages that jaxtune needs are missing: {', '.join(missing)}; pip install {' '.join(missing)}")
    devices, trouble = ask_jax()
    problems += trouble
    accelerators = find_accelerators()
    problems += unused_accelerators(accelerators, devices)
    extras = {name: [part for part in parts if not _version(part)] for name, (parts, _) in EXTRAS.items()}
    machine = _machine()
    if machine["disk_free_gib"] < 5:
        problems.append(f"only {machine['disk_free_gib']} GiB of disk are free here; checkpoints of a large model need more")

    here = _version("jaxtune") or "(run from its folder)"
    output.say(f"jaxtune {here}, Python {platform.python_version()}, {platform.platform()}")
    output.table([(name, version or "missing") for name, version in versions.items()])
    output.say(
        f"\ndevices: {_counted(devices) or 'none'}" + (f"; found on this machine: {', '.join(accelerators)}" if accelerators else "")
    )
    output.say("\nextras (pip install 'jaxtune[NAME]'):")
    rows = [(name, f"missing: {', '.join(lacking)}" if lacking else "installed", EXTRAS[name][1]) for name, lacking in extras.items()]
    output.table(rows)
    output.say(
        f"\ncores {machine['cores']}, memory {machine['memory_gib']} GiB, disk free here {machine['disk_free_gib']} GiB, "
        f"compiled programs in {machine['compile_cache']} ({machine['compile_cache_mib']} MiB)"
    )
    output.say("\n" + ("nothing is wrong" if not problems else "\n".join(f"problem: {problem}" for problem in problems)))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"jaxtune": _version("jaxtune"), **versions},
        "devices": devices,
        "accelerators": accelerators,
        "missing_extras": {name: {"packages": lacking, "serves": EXTRAS[name][1]} for name, lacking in extras.items() if lacking},
        "machine": machine,
        "problems": problems,
    }


def ask_jax(timeout_seconds: float = 90.0) -> tuple[list[dict[str, Any]], list[str]]:
    """The devices that jax sees, and what went wrong."""
    try:
        answer = subprocess.run([sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        return [], [f"jax did not list its devices within {timeout_seconds:g} s; does another process hold the accelerator?"]
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        said = answer.stderr.strip().splitlines()
        return [], [f"jax does not start: {printable(said[-1], 300) if said else f'exit code {answer.returncode}'}"]
    return json.loads(lines[-1]), []


def find_accelerators(root: Path = Path("/")) -> list[str]:
    """Accelerators that this machine shows, whether or not jax can use them: `NVIDIA ...`, `TPU ...`."""
    found = []
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=15).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        found += [f"NVIDIA {match[1]}" for match in re.finditer(r"^GPU \d+: (?:NVIDIA )?(.+?)(?: \(UUID.*)?$", listed, re.MULTILINE)]
    if not found:
        found += [f"NVIDIA device {path}" for path in sorted(root.glob("dev/nvidia[0-9]*"))]
    chips = sorted(root.glob("dev/accel[0-9]*"))
    told = [name for name in _TPU_VARIABLES if os.environ.get(name)]
    if not chips and told:  # newer TPUs are passed through; other devices are too, so the folder alone says nothing
        chips = sorted(path for path in root.glob("dev/vfio/*") if path.name.isdecimal())
    if chips or told:
        found.append(f"TPU ({', '.join(map(str, chips)) if chips else ', '.join(told)})")
    return found


def unused_accelerators(accelerators: list[str], devices: list[dict[str, Any]]) -> list[str]:
    """One problem per sort of accelerator that is there while jax runs on the CPU, with what to do."""
    if not devices or any(device["platform"] != "cpu" for device in devices):
        return []
    chosen = os.environ.get("JAX_PLATFORMS", "")
    problems = []
    for sort, extra in (("NVIDIA", "cuda"), ("TPU", "tpu")):
        seen = [name for name in accelerators if name.startswith(sort)]
        if not seen:
            continue
        installed = all(_version(part) for part in EXTRAS[extra][0])
        if installed and "cpu" in chosen:
            advice = f"JAX_PLATFORMS={chosen} tells it to; unset it"
        elif installed:
            advice = "its plugin is installed but does not start; python -c 'import jax; jax.devices()' says why"
        else:
            advice = f"pip install 'jaxtune[{extra}]'"
        problems.append(f"{seen[0]} is here, but jax runs on the CPU; {advice}")
    return problems


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _missing_packages() -> list[str]:
    """Requirements of the installed jaxtune, without extras, that are not there."""
    try:
        wanted = metadata.requires("jaxtune") or []
    except metadata.PackageNotFoundError:
        wanted = list(SHOWN)
    names = [match[0] for line in wanted if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))]
    return [name for name in names if not _version(name)]


def _counted(devices: list[dict[str, Any]]) -> str:
    kinds = [f"{device['kind']} ({device['platform']})" if device["kind"] != device["platform"] else device["kind"] for device in devices]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _machine() -> dict[str, Any]:
    compiled = cache_folder("compiled")
    size = sum(file.stat().st_size for file in compiled.rglob("*") if file.is_file()) if compiled.is_dir() else 0
    return {
        "cores": _cores(),
        "memory_gib": round(_memory_bytes() / _GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / _GIB, 1),
        "compile_cache": str(compiled),
        "compile_cache_mib": round(size / (1 << 20), 1),
    }


def _cores() -> float:
    """Cores this process may use; in a container its quota."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, period = (*_read("/sys/fs/cgroup/cpu.max").split(), "", "")[:2]
    if quota.isdecimal() and period.isdecimal():
        cores = min(cores, round(int(quota) / int(period), 1))
    return cores


def _memory_bytes() -> int:
    """Main memory; in a container its limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read(path) for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
