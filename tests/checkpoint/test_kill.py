"""Real processes: killed in the middle of a save, and a file system that refuses to write."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jaxtune.checkpoint.store import Store

SAVER = """
import sys, jax, jax.numpy as jnp
from jaxtune.checkpoint.store import Store
store = Store(sys.argv[1], keep_latest=2)
step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
arrays = {f"w{i}": jnp.zeros((512, 1024)) for i in range(16)}
for number in range(1, 1000):
    arrays = step(arrays)
    store.save(number, arrays, {"step": number})
    print(number, flush=True)
"""


@pytest.mark.parametrize("trial", range(3))
def test_kill_in_a_save_leaves_a_whole_checkpoint(tmp_path, trial):
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline() or 1000) < 2 + trial:
        pass
    time.sleep(0.03 * trial)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wanted = {f"w{i}": jax.ShapeDtypeStruct((512, 1024), np.float32, sharding=SingleDeviceSharding(jax.devices()[0])) for i in range(16)}
    with Store(tmp_path) as store:
        restored = store.restore(None, wanted, complete=True)
        assert restored.rejected == () and restored.meta == {"step": restored.step} and restored.step >= 1
        for leaf in restored.arrays.values():
            np.testing.assert_array_equal(leaf, restored.step)
        assert store.save(restored.step + 1, restored.arrays, {}, wait=True)
    assert all(path.name.isdecimal() for path in tmp_path.iterdir())


FULL = """
import resource, sys, jax.numpy as jnp, numpy as np
from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import DiskError
store = Store(sys.argv[1])
arrays = {"w": jnp.asarray(np.random.default_rng(0).standard_normal(2_000_000, dtype=np.float32))}
store.save(1, arrays, {}, wait=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
store.save(2, arrays, {})
try:
    store.wait()
except DiskError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("again", store.save(3, arrays, {}, wait=True), store.steps())
store.close()
"""


def test_a_disk_that_refuses_to_write(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "the checkpoint of step 2 was not saved" in done.stdout and "File too large" in done.stdout, done.stdout
    assert "holds steps 1;" in done.stdout
    assert "again True [1, 3]" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
