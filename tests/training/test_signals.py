"""Real signals to real processes: the exit code says what happened, and the step was finished."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from jaxtune.training.signals import Signals

CHILD = """
import sys, time
from jaxtune.training.signals import Signals
mode = sys.argv[1]
with Signals() as signals:
    print("READY", flush=True)
    if mode == "fork":
        import os
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, 15)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signals.requested(0), flush=True)
        sys.exit(0)
    for step in range(1, 500):
        time.sleep(0.02)
        error = signals.requested(step)
        if error is not None:
            if mode == "slow":
                time.sleep(30)  # the step or the save takes long
            print("saved", step, flush=True)
            sys.exit(error.exit_code)
sys.exit(9)
"""


def launch(code: str, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "XLA_FLAGS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    return process


def ready(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    if process.stdout.readline() != "READY\n":
        process.kill()
        pytest.fail(process.communicate()[1])
    return process


def start(mode: str) -> subprocess.Popen[str]:
    return ready(launch(CHILD, mode))


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_first_signal_finishes_the_step(number, code):
    process = start("steps")
    process.send_signal(number)
    returned, out, err = end(process)
    assert returned == code and out.startswith("saved ")
    assert f"{number.name}: finishing the step and saving; a second one stops at once" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_second_signal_stops_at_once(number, code):
    process = start("slow")
    began = time.monotonic()
    process.send_signal(number)
    time.sleep(0.8)
    process.send_signal(number)
    returned, out, err = end(process)
    assert returned == code and "saved" not in out and time.monotonic() - began < 10
    assert f"second {number.name}, stopping at once" in err


def test_a_request_delivered_twice_is_one_request():
    process = start("steps")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    returned, out, _ = end(process)
    assert returned == 75 and out.startswith("saved ")


def test_a_signal_to_a_forked_child_is_the_childs():
    returned, out, _ = end(start("fork"))
    assert returned == 0 and out == f"child {-signal.SIGTERM} None\n"


def test_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert signals.requested(1) is None
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert "signals" not in [thread.name for thread in threading.enumerate()]


def test_outside_the_main_thread_it_says_so(caplog):
    def body():
        with Signals() as signals:
            assert signals.requested(1) is None

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert "not in the main thread" in caplog.text


DISTRIBUTED = """
import sys, time, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]), heartbeat_timeout_seconds=10, shutdown_timeout_seconds=20)
from jaxtune.training.signals import Signals
with Signals() as signals:
    print("READY", flush=True)
    for step in range(1, 500):
        time.sleep(0.02)
        error = signals.requested(step)
        if error is not None:
            print("saved", step, flush=True)
            sys.exit(error.exit_code)
sys.exit(9)
"""


def test_two_processes_stop_after_the_same_step():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [launch(DISTRIBUTED, str(i), port) for i in range(2)]
    for process in processes:
        ready(process)
    time.sleep(0.3)
    processes[1].send_signal(signal.SIGTERM)
    first, second = (end(process) for process in processes)
    assert (first[0], second[0]) == (75, 75), first[2] + second[2]
    assert first[1] == second[1] and first[1].startswith("saved ")
