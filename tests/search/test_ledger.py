"""The storage: what a kill leaves behind, trials of workers that have gone, and trials asked for beyond the budget."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from jaxtune.core.errors import DiskError
from jaxtune.search.ledger import JOURNAL, LOST_SECONDS, Ledger, Outcome

pytest.importorskip("optuna")
GOOD = Outcome("complete", 0.5, 4, {"f1": 0.5, "loss": math.nan}, 8, 1.0)


def test_a_torn_line_and_a_lock_of_a_kill_are_put_right(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, "s", None, True, "me")
    trial = ledger.ask()
    value = trial.suggest_float("x", 0.0, 1.0)
    ledger.report(trial, 4, 0.5)
    ledger.report(trial, 4, 0.7)  # said again after a restart: the first counts
    ledger.report(trial, 8, math.nan)
    with open(tmp_path / JOURNAL, "a") as file:
        file.write('{"op_code":7,"trial')
    (tmp_path / f"{JOURNAL}.lock").touch()
    began = time.monotonic()
    again = Ledger.open(tmp_path, "s", None, True, "me")
    assert again.unfinished() == [0] and again.curve(trial) == {4: 0.5}
    same = again.again(0)
    assert same.number == 0 and same.suggest_float("x", 0.0, 1.0) == value
    again.end(same, GOOD, {"compilations": 1})
    assert time.monotonic() - began < 10  # nobody waited for the lock
    (record,) = Ledger.open(tmp_path, "s", None, True, "me").records()
    assert (record.state, record.value, record.steps) == ("complete", 0.5, 8) and record.facts["metrics"]["loss"] == "NaN"


def test_trials_of_workers_that_have_gone_are_given_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    mine, theirs = (Ledger.open(tmp_path, "s", url, True, name) for name in ("mine", "theirs"))
    own, alive, lost = mine.ask(), theirs.ask(), theirs.ask()
    lost.set_user_attr("seen", time.time() - LOST_SECONDS - 1)
    assert mine.unfinished() == [own.number] and theirs.unfinished() == [alive.number, lost.number]
    assert mine.elsewhere() == [alive.number]
    states = {record.number: (record.state, record.reason) for record in mine.records()}
    assert states[lost.number] == ("failed", "its worker has not been heard of for a long time")
    theirs.end(lost, GOOD, {})  # the worker comes back: what was given up stays given up, and the worker goes on
    assert {record.number: record.state for record in mine.records()}[lost.number] == "failed"
    theirs.end(alive, GOOD, {})
    assert mine.elsewhere() == []


def test_a_trial_beyond_the_budget_is_none(tmp_path: Path) -> None:
    """Two workers who ask at once for the last trial: one gives its own back, and a later one has the place that is free."""
    ledger = Ledger.open(tmp_path, "s", None, False, "me")
    for _ in range(2):
        ledger.end(ledger.ask(), GOOD, {})
    surplus = ledger.ask()
    assert ledger.position(surplus) == 2
    ledger.give_back(surplus)
    later = ledger.ask()
    assert later.number == 3 and ledger.position(later) == 2
    ledger.end(later, GOOD, {})
    assert [record.number for record in ledger.records()] == [0, 1, 3]


def test_a_storage_that_fails_is_no_failure_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.exceptions import StorageInternalError

    ledger = Ledger.open(tmp_path, "s", f"sqlite:///{tmp_path}/s.db", True, "me")
    trial = ledger.ask()

    def broken(*arguments: object, **more: object) -> None:
        raise StorageInternalError("An exception is raised during the commit.") from OSError("postgresql://me:secret-word@host: it is gone")

    for name in ("get_all_trials", "set_trial_user_attr"):
        monkeypatch.setattr(ledger.study._storage, name, broken)
    for call in (ledger.records, lambda: ledger.mark(trial), lambda: ledger.report(trial, 1, 0.5), lambda: ledger.end(trial, GOOD, {})):
        with pytest.raises(DiskError, match=r"cannot be read or written .*it is gone.*start the search again") as caught:
            call()
        assert "secret-word" not in str(caught.value)
    monkeypatch.undo()
    assert [(record.number, record.state) for record in ledger.records()] == [(0, "running")]


def test_a_fact_is_noted_once(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, "s", None, True, "me")
    assert ledger.fact("ranges", lambda: {"x": (1, 2)}) == ({"x": [1, 2]}, True)  # as it will be read
    assert Ledger.open(tmp_path, "s", None, True, "me").fact("ranges", dict) == ({"x": [1, 2]}, False)
