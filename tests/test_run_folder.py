"""The folder of a run: never shared, never overwritten, whole after a crash, without secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxtune.core.errors import ConfigError, DiskError, FolderLockedError
from jaxtune.core.lock import Lock, describe_process
from jaxtune.run_folder import RunFolder, git_state


def test_names_are_numbered_and_nothing_is_shared(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunFolder.create(tmp_path / "runs", "bbc"), range(8)))
    assert sorted(run.path.name for run in runs) == ["bbc", *(f"bbc-{i}" for i in range(2, 9))]


@pytest.mark.parametrize("name", ["", "..", "a/b", " a", "a\0b"])
def test_bad_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a folder"):
        RunFolder.create(tmp_path, name)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"the run folder cannot be made .* --runs-dir"):
        RunFolder.create(tmp_path / "file", "run")


def test_opening_what_is_no_run(tmp_path):
    run = RunFolder.create(tmp_path, "a")
    run.set_state("done")
    with pytest.raises(ConfigError, match=r"b: there is no such run \(runs there: a\)"):
        RunFolder.existing(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"no run folder \(resolved.yaml is missing\)"):
        RunFolder.existing(tmp_path / "a")
    run.write("resolved.yaml", "name: a\n")
    assert RunFolder.existing(tmp_path / "a").path == run.path


# The lock

HOLD = """
import sys, time
from pathlib import Path
from jaxtune.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])):
    print("LOCKED", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    run = RunFolder.create(tmp_path, "run")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "LOCKED\n"
    yield run, process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_owns_the_folder(holder):
    run, process = holder
    with pytest.raises(FolderLockedError, match=rf"run is in use by process {process.pid} on .*\n.* wait for it or stop it") as caught, run:
        pass
    assert caught.value.exit_code == 73
    assert not run._handlers and process.poll() is None


def test_the_lock_of_a_killed_process_is_taken_over(holder):
    run, process = holder
    process.kill()
    process.wait()
    with run:
        assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()
    assert not (run.path / "lock").exists()


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    with RunFolder(tmp_path) as run, pytest.raises(FolderLockedError), RunFolder(run.path):
        pass


GONE = {"pid": 2**22 + 1, "host": describe_process()["host"], "boot": describe_process()["boot"], "started": 1, "since": "then"}


@pytest.mark.parametrize(
    ("owner", "stale"),
    [
        (GONE, True),
        ({**GONE, "pid": os.getppid()}, True),  # the number belongs to another process by now
        ({**describe_process(), "boot": "before the reboot"}, True),
        ({**GONE, "host": "elsewhere"}, False),
        (describe_process(), False),
    ],
)
def test_who_is_gone(tmp_path, owner, stale):
    (tmp_path / "lock").write_text(json.dumps(owner))
    lock = Lock(tmp_path / "lock")
    if stale:
        lock.acquire()
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
        lock.release()
        assert not (tmp_path / "lock").exists()
    else:
        with pytest.raises(FolderLockedError, match=f"process {owner['pid']} on {owner['host']}"):
            lock.acquire()
        assert json.loads((tmp_path / "lock").read_text()) == owner


def test_an_empty_lock(tmp_path):
    """Its maker was about to write its name, or died before."""
    (tmp_path / "lock").write_text("")
    with pytest.raises(FolderLockedError, match="just being taken"):
        Lock(tmp_path / "lock").acquire()
    os.utime(tmp_path / "lock", (time.time() - 60,) * 2)
    Lock(tmp_path / "lock").acquire()


RACE = """
import sys, time
from pathlib import Path
from jaxtune.core.errors import FolderLockedError
from jaxtune.core.lock import Lock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    Lock(Path(sys.argv[1])).acquire()
    print("mine", flush=True)
    time.sleep(1)
except FolderLockedError:
    print("not mine", flush=True)
"""


def test_one_heir_only(tmp_path):
    (tmp_path / "lock").write_text(json.dumps(GONE))
    begin = str(time.time() + 2)
    command = [sys.executable, "-c", RACE, str(tmp_path / "lock"), begin]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(5)]
    said = [process.communicate()[0].strip() for process in processes]
    assert sorted(said) == ["mine", *["not mine"] * 4]


# State, events, metrics


def test_state_is_merged_and_whole(tmp_path):
    run = RunFolder(tmp_path)
    assert run.state() == {}
    run.set_state("running", restarts=1, loss=float("nan"))
    run.set_state("preempted", last_durable_step=40)
    state = run.state()
    assert {k: state[k] for k in ("status", "restarts", "last_durable_step", "loss")} == {
        "status": "preempted",
        "restarts": 1,
        "last_durable_step": 40,
        "loss": "NaN",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_state_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    RunFolder(tmp_path / "nowhere").set_state("running")
    assert "state.json could not be written" in caplog.text


def test_events_survive_a_torn_line(tmp_path):
    run = RunFolder(tmp_path)
    run.event("saved", step=10, seconds=0.5)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"time": "2026-')  # killed here
    run = RunFolder(tmp_path)
    run.event("resumed", step=10)
    assert [(event["event"], event["step"]) for event in run.events()] == [("saved", 10), ("resumed", 10)]


def test_rows_after_the_restored_step_are_taken_back(tmp_path):
    run = RunFolder(tmp_path)
    for step in (10, 20, 20, 30, 40):
        run.metrics.append({"step": step, "loss": step / 10})
    run.metrics.append({"note": "no step"})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')
    assert run.drop_after(20) == 2
    run.metrics.append({"step": 21})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("step") for row in rows] == [10, 20, 20, None, 21]
    assert rows[0] == {"step": 10, "loss": 1.0}


def test_a_full_disk_costs_rows_and_one_warning(tmp_path, caplog):
    run = RunFolder(tmp_path)
    run._events.path = Path("/dev/full")
    run.event("saved", step=1)
    run.event("saved", step=2)
    assert caplog.text.count("could not be written") == 1


# Secrets


def test_no_secret_reaches_the_folder(tmp_path, monkeypatch):
    secrets = {
        "HF_TOKEN": "plainCANARYvalue1234",
        "SOME_API_KEY": "anotherCANARY567890",
        "JAX_MY_PASSWORD": "thirdCANARYsecret",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with RunFolder(tmp_path) as run:
        log = logging.getLogger("jaxtune.test")
        log.info("token plainCANARYvalue1234 used at https://me:CANARYpass@example.org/x")
        try:
            raise ValueError("login with hf_abcdefghCANARY0123 failed")
        except ValueError:
            log.exception("crash")
        command = ["jaxtune", "train", "x.yaml", "--token", "CANARY", "api_key=CANARYabcdef", "Authorization: Bearer CANARYabcdef"]
        run.write_environment(["cpu:0"], command)
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "CANARY" not in text
    assert "ValueError: login with [hidden] failed" in text and "https://[hidden]@example.org/x" in text
    assert '"jaxtune",\n' in text and "[hidden]" in text


def test_the_log_is_only_written_inside(tmp_path, capsys):
    logger = logging.getLogger("jaxtune")
    before = list(logger.handlers), logger.level
    with RunFolder(tmp_path):
        logging.getLogger("jaxtune.x").info("one")
    logging.getLogger("jaxtune.x").info("two")
    assert "INFO jaxtune.x: one" in (tmp_path / "log.txt").read_text() and "two" not in (tmp_path / "log.txt").read_text()
    assert (list(logger.handlers), logger.level) == before


# Surroundings


def test_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_something=1")
    run = RunFolder(tmp_path)
    run.write_environment(["cpu:0", "cpu:1"], ["jaxtune", "train"], data_fingerprint="abc")
    run.write_environment(["cpu:0"], ["jaxtune", "resume"])
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["command"][1] for start in starts] == ["train", "resume"]
    assert starts[0]["devices"] == ["cpu:0", "cpu:1"] and starts[0]["data_fingerprint"] == "abc"
    assert starts[0]["environment"]["XLA_FLAGS"] == "--xla_cpu_something=1" and "PATH" not in starts[0]["environment"]
    assert starts[0]["versions"]["jax"] and set(starts[0]["git"]) == {"jaxtune", "here"}


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**state, "dirty": True}
