"""Saving and restoring: exact, sharded, partial, and the right steps kept."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxtune.checkpoint.arrays import named_leaves
from jaxtune.checkpoint.store import Store
from jaxtune.core.errors import DiskError, ModelError, NoCheckpointError


def mesh(*shape: int) -> Mesh:
    devices = np.asarray(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, ("data", "tensor")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))


def abstract(tree, sharding=None):
    default = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or default), tree)


def state(seed: float = 0.0):
    numbers = np.random.default_rng(int(seed))
    return {
        "params": {
            "layers.0-5.attn.q.kernel": jnp.asarray(numbers.standard_normal((6, 8, 16)), jnp.float32),
            "embedding": jnp.asarray(numbers.standard_normal((32, 8)), jnp.bfloat16),
        },
        "opt_state": [{"mu": {"head.bias": jnp.full(3, seed + 0.25)}}, jnp.int32(seed)],
        "key": jax.random.key(int(seed) + 7),
        "keys": jax.random.split(jax.random.key(int(seed)), 4),
        "flags": jnp.asarray([True, False]),
        "nothing": jnp.zeros((0, 3)),
    }


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, leaf in named_leaves(expected).items():
        other = named_leaves(found)[name]
        assert (other.shape, other.dtype) == (leaf.shape, leaf.dtype), name
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
        assert np.asarray(other).tobytes() == np.asarray(leaf).tobytes(), name


def small(value: float):
    return {"w": jnp.full((8, 4), value, jnp.float32)}


def test_round_trip_is_exact(tmp_path):
    original, meta = state(3.0), {"phase": 1, "best": 0.1 + 0.2, "data": {"next": 12}, "rules": [{"patience": 3}]}
    with Store(tmp_path, best="max") as store:
        assert store.save(3, original, meta, metric=0.5)
    with Store(tmp_path, best="max") as store:
        assert (store.steps(), store.best_step, store.latest_step, store.meta(3)) == ([3], 3, 3, meta)
        assert store.last_durable is not None and store.last_durable.step == 3
        restored = store.restore(None, abstract(original), complete=True)
    assert (restored.step, restored.meta, restored.rejected) == (3, meta, ())
    assert_equal(restored.arrays, original)


def test_restored_arrays_may_be_donated(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, small(2.0), {}, wait=True)
        arrays = store.restore(1, abstract(small(0.0))).arrays
        step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
        for _ in range(3):
            arrays = step(arrays)
        np.testing.assert_array_equal(arrays["w"], 16.0)
        np.testing.assert_array_equal(store.restore(1, abstract(small(0.0))).arrays["w"], 2.0)


def test_donating_right_after_the_save_does_not_touch_what_is_saved(tmp_path):
    sharding = NamedSharding(mesh(4), P("data"))
    arrays = {f"w{i}": jax.device_put(np.zeros((512, 1024), np.float32), sharding) for i in range(8)}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    wanted = abstract(arrays, sharding)
    with Store(tmp_path, keep_latest=10) as store:
        for number in range(1, 6):
            arrays = step(arrays)
            store.save(number, arrays, {})
            for _ in range(3):
                arrays = step(arrays)
        store.wait()
        for number in range(1, 6):
            for leaf in store.restore(number, wanted).arrays.values():
                np.testing.assert_array_equal(leaf, number + 3 * (number - 1))


@pytest.mark.parametrize("shape", [(8,), (4, 2), (2, 2), (1,)])
def test_restores_on_another_mesh(tmp_path, shape):
    big = mesh(4, 2)
    kernel = jax.device_put(np.arange(64.0, dtype=np.float32).reshape(8, 8), NamedSharding(big, P("data", "tensor")))
    whole = jax.device_put(np.arange(5.0, dtype=np.float32), NamedSharding(big, P()))
    with Store(tmp_path) as store:
        store.save(1, {"kernel": kernel, "whole": whole, "key": jax.random.key(1)}, {}, wait=True)
    other = mesh(*shape)
    on_rows, everywhere = NamedSharding(other, P("data")), NamedSharding(other, P())
    wanted = {
        "kernel": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=on_rows),
        "whole": jax.ShapeDtypeStruct((5,), np.float32, sharding=everywhere),
        "key": jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=everywhere),
    }
    arrays = Store(tmp_path, read_only=True).restore(None, wanted).arrays
    np.testing.assert_array_equal(arrays["kernel"], kernel)
    np.testing.assert_array_equal(arrays["whole"], whole)
    assert arrays["kernel"].sharding == on_rows
    assert jnp.array_equal(jax.random.key_data(arrays["key"]), jax.random.key_data(jax.random.key(1)))


def test_a_part_can_be_restored_and_read(tmp_path):
    original = state(1.0)
    with Store(tmp_path) as store:
        store.save(1, original, {}, wait=True)
        part = {"params": abstract(original["params"])}
        assert_equal(store.restore(1, part).arrays, {"params": original["params"]})
        with pytest.raises(ModelError, match="in the checkpoint, but this experiment has no such array"):
            store.restore(1, part, complete=True)
        on_host = store.read_arrays(1, "params/")
        assert set(on_host) == {"params/layers.0-5.attn.q.kernel", "params/embedding"}
        assert all(type(leaf) is np.ndarray for leaf in on_host.values())
        np.testing.assert_array_equal(on_host["params/embedding"], original["params"]["embedding"])
        np.testing.assert_array_equal(store.read_arrays(1, "key")["key"], jax.random.key_data(original["key"]))
        with pytest.raises(NoCheckpointError, match=r"no step 2 .*there are: 1"):
            store.read_arrays(2)


def test_what_is_asked_for_may_depend_on_the_step(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {"w": jnp.zeros(3)}, {"phase": 0})
        store.save(2, {"w": jnp.ones(5)}, {"phase": 1}, wait=True)
        assert store.arrays(2) == {"w": {"shape": [5], "dtype": "float32"}}
        asked = []

        def wanted(step):
            asked.append((step, store.meta(step)["phase"]))
            return abstract({name: jnp.zeros(entry["shape"]) for name, entry in store.arrays(step).items()})

        (tmp_path / "2" / "commit_success.txt").unlink()
        restored = store.restore(None, wanted)
        assert (restored.step, restored.arrays["w"].shape, asked) == (1, (3,), [(1, 0)])


def test_every_mismatch_is_in_one_error_and_nothing_is_moved(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(4), "kernel": jnp.zeros(5)}, {}, wait=True)
        wanted = abstract({"a": jnp.zeros(2), "b": jnp.zeros(4, jnp.bfloat16), "kernal": jnp.zeros(5)})
        with pytest.raises(ModelError) as caught:
            store.restore(None, wanted)
        text = str(caught.value)
        assert "a: shape (3,) in the checkpoint, (2,) expected" in text
        assert "b: float32 in the checkpoint, bfloat16 expected" in text
        assert 'kernal: not in the checkpoint; did you mean "kernel"?' in text
        assert store.steps() == [1] and not (tmp_path / "quarantine").exists()


def test_latest_and_best_are_kept(tmp_path):
    with Store(tmp_path, keep_latest=2, best="max") as store:
        for step, metric in [(10, 0.5), (20, 0.9), (30, float("nan")), (40, None), (50, float("inf")), (60, 0.9), (70, 0.1)]:
            store.save(step, small(step), {}, metric=metric)
        store.wait()
        assert (store.steps(), store.best_step) == ([20, 60, 70], 20)
        np.testing.assert_array_equal(store.restore(20, abstract(small(0))).arrays["w"], 20.0)
    assert Store(tmp_path, best="min").best_step == 70
    assert Store(tmp_path).best_step is None


def test_a_step_that_is_there_is_saved_again_only_when_asked(tmp_path):
    with Store(tmp_path, best="max") as store:
        assert store.save(5, small(1), {"n": 1}, metric=0.1)
        assert not store.save(5, small(2), {"n": 2}, metric=0.2)
        assert store.meta(5) == {"n": 1}
        assert store.save(5, small(3), {"n": 3}, metric=0.3, replace=True)
        store.wait()
        assert (store.steps(), store.meta(5), store.metric(5)) == ([5], {"n": 3}, 0.3)
        np.testing.assert_array_equal(store.restore(5, abstract(small(0))).arrays["w"], 3.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5"]


def test_a_replacement_cut_off_leaves_the_old_step(tmp_path):
    with Store(tmp_path) as store:
        store.save(5, small(1), {}, wait=True)
    (tmp_path / "5").rename(tmp_path / "5.replaced")
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    with Store(tmp_path) as store:
        assert store.steps() == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5"]


def test_rollback_archives_later_steps(tmp_path):
    with Store(tmp_path, keep_latest=5) as store:
        for step in (10, 20, 30):
            store.save(step, small(step), {})
        assert store.delete_after(10) == [20, 30]
        assert (store.steps(), store.last_durable.step) == ([10], 10)
        store.save(20, small(21), {}, wait=True)
        assert store.restore(None, abstract(small(0))).arrays["w"][0, 0] == 21.0
        assert store.delete_after(10) == [20]
    assert [path.name for path in (tmp_path / "archive").iterdir()] == ["20"]


def test_reading_only_changes_nothing(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, small(1), {}, wait=True)
        store.save(2, small(2), {}, wait=True)
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2" / "record" / "data.json").write_text("{}")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    store = Store(tmp_path, read_only=True)
    assert store.restore(None, abstract(small(0))).step == 1
    with pytest.raises(ValueError, match="reading only"):
        store.save(4, small(4), {})
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_no_checkpoint(tmp_path):
    store = Store(tmp_path / "none", best="max")
    assert (store.steps(), store.latest_step, store.best_step, store.last_durable, store.is_empty) == ([], None, None, None, True)
    with pytest.raises(NoCheckpointError, match="no checkpoint was ever completed"):
        store.restore(None, abstract(small(0)))
    store.save(1, small(1), {}, wait=True)
    with pytest.raises(NoCheckpointError, match=r"no step 9 \(there are: 1 \(best\)|no step 9 \(there are: 1"):
        store.restore(9, abstract(small(0)))


def test_little_room_is_refused_before_the_save(tmp_path, monkeypatch):
    with Store(tmp_path, keep_latest=3, best="max") as store:
        for step, metric in ((1, 0.9), (2, 0.1), (3, 0.2)):
            store.save(step, small(step), {}, metric=metric, wait=True)
        monkeypatch.setattr(type(store.folder), "free_bytes", lambda self: 1000)
        with pytest.raises(DiskError, match=r"step 4 was not saved: 1 MiB of free space are needed\n.*steps 1 \(best\), 3; 0 MiB are free"):
            store.save(4, small(4), {})
        monkeypatch.undo()
        assert store.steps() == [1, 3]  # older ones were given up first
        assert store.save(4, small(4), {})


def test_a_failed_save_is_told_once_and_the_next_one_works(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save(1, small(1), {}, wait=True)
    calls = []

    def broken(folder):
        calls.append(folder)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("jaxtune.checkpoint.manifest.write", broken)
        store.save(2, small(2), {})
        store._thread.join()
        assert len(calls) == 2  # tried twice
    with pytest.raises(DiskError, match=r"step 2 was not saved: OSError: \[Errno 28\] No space left on device\n.*holds steps 1;"):
        store.poll()
    store.poll()
    assert store.save(3, small(3), {}, wait=True)
    assert store.restore(None, abstract(small(0))).step == 3
    store.close()


def test_one_retry_succeeds_where_the_first_try_failed(tmp_path, monkeypatch):
    from jaxtune.checkpoint import manifest

    real, calls = manifest.write, []

    def once(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(folder)

    monkeypatch.setattr("jaxtune.checkpoint.manifest.write", once)
    with Store(tmp_path) as store:
        store.save(2, small(2), {})
    assert store.steps() == [2]
    assert Store(tmp_path).restore(None, abstract(small(0))).arrays["w"][0, 0] == 2.0


def test_saves_run_in_the_background(tmp_path, monkeypatch):
    from jaxtune.checkpoint import manifest

    real, gate = manifest.write, threading.Event()
    monkeypatch.setattr("jaxtune.checkpoint.manifest.write", lambda folder: (gate.wait(10), real(folder)))
    with Store(tmp_path) as store:
        store.save(1, small(1), {})  # returns although the manifest cannot be written yet
        assert (store.steps(), store.last_durable) == ([], None)
        assert 0 < store.stall_seconds < 5
        gate.set()
        store.wait()
        assert store.last_durable.step == 1


def test_wrong_use_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(TypeError, match="JSON"):
        store.save(1, small(1), {"bad": object()})
    with pytest.raises(ValueError, match='two arrays are called "a/b"'):
        store.save(1, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, {})
    store.save(1, small(1), {}, wait=True)
    with pytest.raises(ValueError, match="no sharding: w"):
        store.restore(1, {"w": jax.ShapeDtypeStruct((8, 4), np.float32)})
    assert store.steps() == [1]
