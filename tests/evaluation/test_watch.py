"""The live page's server: what it reads of growing folders, whom it answers, and how it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
from made_advice import Made

from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.charts import smooth
from jaxtune.evaluation.watch import MOST_KEPT, MOST_POINTS, Followed, Runs, Tail
from jaxtune.evaluation.watch_server import Server


def row(step: int, loss: float) -> str:
    return json.dumps({"step": step, "split": "train", "loss": loss, "learning_rate": 1e-3, "examples": 8, "seconds": 0.5}) + "\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    Made().write(tmp_path / "runs" / "a")
    Made(steps=40).write(tmp_path / "runs" / "deep" / "er" / "b")
    (tmp_path / "runs" / "no run").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def server(runs: Path) -> Iterator[Server]:
    with Server(runs) as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


# -- reading ----------------------------------------------------------------------------------------------------------------


def test_a_tail_gives_whole_new_lines_and_notices_another_file(tmp_path: Path):
    path = tmp_path / "rows"
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text("one\ntwo\nhal")
    assert tail.read() == (True, [b"one", b"two"])
    with path.open("a") as file:
        file.write("f\n")
    assert tail.read() == (False, [b"half"])
    assert tail.read() == (False, [])
    (tmp_path / "new").write_text("one\ntwo\nother and longer than before\n")
    os.replace(tmp_path / "new", path)
    assert tail.read() == (True, [b"one", b"two", b"other and longer than before"])
    path.write_text("x\n")
    assert tail.read() == (True, [b"x"])
    path.unlink()
    assert tail.read() == (True, [])


def test_what_a_run_shows(runs: Path):
    watched = Runs(runs)
    watched.refresh()
    table = watched.table()["runs"]
    assert sorted(one["name"] for one in table) == ["a", "deep/er/b"]
    mine = next(one for one in table if one["name"] == "a")
    assert (mine["status"], mine["step"], mine["steps"], mine["metric"], mine["best_step"]) == ("done", 100, 100, "accuracy", 100)
    rows = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    train, tested = ([one for one in rows if one["split"] == split] for split in ("train", "validation"))
    assert mine["best"] == tested[-1]["accuracy"] and mine["loss"] == train[-1]["loss"] and mine["examples_per_second"] == 160
    run = watched.find(mine["id"])
    assert run is not None
    curves = run.curves()
    expected = smooth(np.array([one["loss"] for one in train]), 100 / 40)
    np.testing.assert_allclose([y for _, y in curves["train"]], expected, rtol=1e-4)
    assert curves["validation"] == [[one["step"], pytest.approx(one["loss"], rel=1e-4)] for one in tested]
    assert curves["metric"][0][0] == 10 and curves["rate"][0] == [1, 0.001]


def test_a_run_folder_itself_can_be_watched(runs: Path):
    watched = Runs(runs / "a")
    watched.refresh()
    assert [one["name"] for one in watched.table()["runs"]] == ["a"]


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_of_many_rows_every_so_many_are_held_however_they_arrive(pieces: int, tmp_path: Path):
    run = Followed(tmp_path, "x")
    total = 3 * MOST_KEPT + 11
    for part in np.array_split(np.arange(1, total + 1), pieces):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write("".join(row(int(step), 1 / step) for step in part))
        run.refresh()
    assert [step for step, _, _ in run.steps] == list(range(1, total + 1, run.stride)) and len(run.steps) <= MOST_KEPT
    assert run.stride == 4 and run.latest["step"] == total and run.version == pieces
    run.refresh()
    assert run.version == pieces


def test_fifty_runs_and_a_hundred_thousand_rows(tmp_path: Path):
    made = Made(steps=40).write(tmp_path / "run-0")
    for number in range(1, 50):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        for name in ("resolved.yaml", "state.json", "facts.json", "metrics.jsonl"):
            (folder / name).write_bytes((made / name).read_bytes())
    with (made / "metrics.jsonl").open("a") as file:
        file.write("".join(row(step, 1.0) for step in range(41, 100_001)))
    watched = Runs(tmp_path)
    start = time.perf_counter()
    watched.refresh()
    table = watched.table()
    first = time.perf_counter() - start
    start = time.perf_counter()
    watched.refresh()
    again = watched.table()
    later = time.perf_counter() - start
    assert len(table["runs"]) == len(again["runs"]) == 50
    large = max(watched.known.values(), key=lambda run: run.seen)
    curves = large.curves()
    assert large.latest["step"] == 100_000 and all(len(curves[name]) <= MOST_POINTS for name in ("train", "rate", "validation", "metric"))
    assert len(json.dumps(curves)) < 60_000
    assert first < 10 and later < 0.5, (first, later)


def test_numbers_that_are_none_and_rows_that_are_torn(tmp_path: Path):
    (tmp_path / "resolved.yaml").write_text("task: [")
    (tmp_path / "metrics.jsonl").write_text(
        row(1, 0.5) + '{"step": 2, "split": "train", "loss": "NaN"}\n{"step": 3, "split": "train", "lo\n[1]\n'
    )
    (tmp_path / "state.json").write_text("{")
    run = Followed(tmp_path, "x")
    run.refresh()
    assert run.summary()["status"] == "not begun" and run.summary()["metric"] == "loss"
    assert run.curves()["train"] == [[1, 0.5], [2, None]]


# -- answering --------------------------------------------------------------------------------------------------------------


def test_the_page_and_its_data(server: Server):
    status, headers, body = ask(server, "/")
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert status == 200 and f'<script nonce="{nonce}">' in body.decode() and body.decode().count("<script") == 1
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    assert ask(server, "/")[1]["Content-Security-Policy"] != policy, "a nonce is used once"
    table = json.loads(ask(server, "/runs.json")[2])
    assert len(table["runs"]) == 2
    status, headers, body = ask(server, f"/curves.json?id={table['runs'][0]['id']}")
    assert status == 200 and headers["Content-Type"].startswith("application/json") and json.loads(body)["train"]
    assert server.server_address[0] == "127.0.0.1"


def test_reports_are_shown_where_no_script_can_run(server: Server, runs: Path):
    found = {one["name"]: one["id"] for one in json.loads(ask(server, "/runs.json")[2])["runs"]}
    assert ask(server, f"/report?id={found['a']}")[0] == 404
    (runs / "a" / "report.html").write_text("<p>the report", encoding="utf-8")
    status, headers, body = ask(server, f"/report?id={found['a']}")
    assert (status, body) == (200, b"<p>the report") and "sandbox" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example:{port}"}, {"Host": "127.0.0.1"}, {"Host": ""}, {"Origin": "http://evil.example"}]
)
@pytest.mark.parametrize("path", ["/", "/runs.json", "/report?id=x"])
def test_other_names_and_other_sites_are_refused(server: Server, headers: dict[str, str], path: str):
    given = {name: value.format(port=server.server_port) for name, value in headers.items()}
    status, _, body = ask(server, path, **given)
    assert status == 403 and body == f"Open {server.address} instead.\n".encode()


def test_this_machine_by_its_other_name(server: Server):
    assert ask(server, "/runs.json", Host=f"localhost:{server.server_port}")[0] == 200
    assert ask(server, "/runs.json", Origin=f"http://127.0.0.1:{server.server_port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(server: Server, method: str):
    assert ask(server, "/runs.json", method)[0] == 405


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/etc/passwd", "/report?id=../a", "/report", "/curves.json?id=a", "/a/report.html"])
def test_no_path_leads_anywhere_else(server: Server, path: str):
    assert ask(server, path)[0] == 404


def test_head_has_no_body(server: Server):
    status, headers, body = ask(server, "/runs.json", "HEAD")
    assert status == 200 and int(headers["Content-Length"]) > 0 and body == b""


def test_a_folder_that_is_not_there_and_a_port_that_is_taken(server: Server, runs: Path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        Server(runs / "nowhere")
    with pytest.raises(ConfigError, match=f"port {server.server_port} cannot be used"):
        Server(runs, server.server_port)


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_ctrl_c_ends_it_cleanly(runs: Path, words: tuple[str, ...]):
    environment = {**tiny_run.environment(), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jaxtune", "watch", str(runs), "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout and process.stderr
        said: Any = process.stderr if words else process.stdout
        address = said.readline().split()[0]
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)  # left open: it must not hold up the end
        connection.request("GET", "/runs.json")
        assert len(json.loads(connection.getresponse().read())["runs"]) == 2
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()  # or leaving the block would wait for a process that goes on
        connection.close()
    assert process.returncode == 0, err
    if words:
        assert json.loads(out) == {"address": address, "folder": str(runs), "runs": 2} and err == ""
    else:
        assert out == "ended\n" and err == ""
