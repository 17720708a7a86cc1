"""Loading goes tensor by tensor: the host never holds the checkpoint beside the model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity_cases as cases
from safetensors.numpy import save_file

# Linux: writing 5 to clear_refs sets the high-water mark back to what is in use now.
LOADING = """
import json, re, sys
from pathlib import Path
import conftest, jax
import parity_cases as cases

def megabytes(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

cases.loaded("bert")  # what any loading imports and starts is no part of the question
before = megabytes("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
it = cases.load_folder(sys.argv[1], 3)
jax.block_until_ready(it.values)
model = sum(value.nbytes for value in it.values.values()) / 2**20
print(json.dumps({"model": model, "peak": megabytes("VmHWM") - before}))
"""


def write_checkpoint(folder: Path) -> None:
    """A random BERT of about 100 MB, most of it in stacked kernels."""
    width, mlp, layers, vocabulary = 512, 2048, 6, 8192
    known = json.loads((cases.REFERENCES / "bert" / "config.json").read_text())
    sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "vocab_size": vocabulary}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**known, **sizes}))
    block = np.random.default_rng(0).standard_normal(vocabulary * width, np.float32)
    grown = {32: width, 40: mlp, 120: vocabulary}
    tensors = {}
    for name, small in cases.stored("bert").items():
        for layer in range(layers) if ".layer.2." in name else (2,):
            shape = [grown.get(size, size) for size in small.shape]
            tensors[name.replace(".layer.2.", f".layer.{layer}.")] = block[: math.prod(shape)].reshape(shape)
    save_file(tensors, folder / "model.safetensors")


def test_peak_host_memory_stays_under_one_and_a_half_models(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m")
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{LOADING}", str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["model"] > 80
    assert found["peak"] < 1.5 * found["model"], found
