"""The trials in Optuna's storage: asked for, reported, told. A journal file on this machine, or a database that many machines share.

What is needed to go on after a kill is here and nowhere else: a trial that was running when its worker died is found again with its number
and its settings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtune.core.errors import ConfigError, DiskError
from jaxtune.core.files import plain
from jaxtune.core.redact import redact
from jaxtune.search.rungs import Past

JOURNAL = "journal.log"
SEEN_SECONDS = 60.0  # how often a worker says that its trial lives
LOST_SECONDS = 3600.0  # a trial of another worker that has not been heard of for so long (the longest compilation) is given up
SURPLUS = "surplus"
NARROWED = "narrowed:"  # before the number of a round, among the facts about the study


Ended = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        value: the best validation number, or None where there is none.
        metrics: everything measured at that best evaluation.
        steps: optimizer steps taken, those before a restart included.
        reason: why it was stopped or failed.
    """

    ended: Ended
    value: float | None
    best_step: int | None
    metrics: Mapping[str, Any]
    steps: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Record:
    """A trial as the storage knows it."""

    number: int
    state: Literal["running", "complete", "stopped", "failed"]
    settings: Mapping[str, Any]
    value: float | None
    curve: Mapping[int, float]
    worker: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return int(self.facts.get("steps", 0))

    @property
    def reason(self) -> str:
        return str(self.facts.get("reason", ""))

    def to_json(self) -> dict[str, Any]:
        """A row of trials.jsonl."""
        curve = [list(point) for point in sorted(self.curve.items())]
        return {
            "trial": self.number,
            "state": self.state,
            "value": self.value,
            "settings": dict(self.settings),
            **self.facts,
            "curve": curve,
        }


class Ledger:
    """One study of Optuna.

    Every method raises DiskError where the storage cannot be read or written; a trial under way then stays under way.
    """

    def __init__(self, study: Any, worker: str, alone: bool):
        self.study, self.worker, self.alone = study, worker, alone
        self.marked = 0.0

    @classmethod
    def open(cls, folder: Path, name: str, storage: str | None, higher_is_better: bool, worker: str) -> Ledger:
        """Makes the study, or finds it.

        Raises:
            ConfigError: Optuna or the database's driver is missing, or the database cannot be reached.
        """
        optuna = require_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if storage is None:
            place = journal(folder / JOURNAL)
        else:
            place = database(storage)
        direction = "maximize" if higher_is_better else "minimize"
        with answering():
            study = optuna.create_study(storage=place, study_name=name, direction=direction, load_if_exists=True)
        return cls(study, worker, storage is None)

    # -- trials ---------------------------------------------------------------------------------------------------------

    def ask(self) -> Any:
        """A new Optuna trial of this worker, without settings yet."""
        with answering():
            trial = self.study.ask()
        self.mark(trial)
        return trial

    def again(self, number: int) -> Any:
        """The Optuna trial of a number, to go on with it; settings that it has been given stay."""
        from optuna.trial import Trial

        return Trial(self.study, self.frozen(number)._trial_id)

    def trials(self) -> list[Any]:
        """Optuna's own records, those beyond the budget included."""
        with answering():
            return self.study.get_trials(deepcopy=False)

    def frozen(self, number: int) -> Any:
        return next(trial for trial in self.trials() if trial.number == number)

    def mark(self, trial: Any) -> None:
        """Says to other workers whose trial it is, and that it lives."""
        self.marked = time.monotonic()
        if not self.alone:
            with answering(), unless_given_up():
                trial.set_user_attr("worker", self.worker)
                trial.set_user_attr("seen", time.time())

    def keep(self, trial: Any) -> None:
        """As `mark`, where that is due; costs nothing otherwise."""
        if not self.alone and time.monotonic() - self.marked > SEEN_SECONDS:
            self.mark(trial)

    def records(self) -> list[Record]:
        """All trials, by number."""
        return [record(trial) for trial in self.trials() if not trial.user_attrs.get(SURPLUS)]

    def unfinished(self) -> list[int]:
        """Trials that this worker began in an earlier life; alone on a journal all that run are."""
        return [found.number for found in self.records() if found.state == "running" and (self.alone or found.worker == self.worker)]

    def elsewhere(self) -> list[int]:
        """Trials that other workers are running; those whose worker has gone are noted as failed and left out."""
        from optuna.trial import TrialState

        alive = []
        for frozen in self.trials():
            if frozen.state != TrialState.RUNNING or self.alone or frozen.user_attrs.get("worker") == self.worker:
                continue
            began = frozen.datetime_start.timestamp() if frozen.datetime_start else 0.0
            if time.time() - frozen.user_attrs.get("seen", began) < LOST_SECONDS:
                alive.append(frozen.number)
            else:
                reason = "its worker has not been heard of for a long time"
                self.tell(self.again(frozen.number), "failed", None, {"reason": reason})
        return alive

    def report(self, trial: Any, step: int, value: float) -> None:
        """An evaluation; one that was reported before a restart is known already."""
        if math.isfinite(value) and step not in self.curve(trial):
            with answering(), unless_given_up():
                trial.report(value, step)

    def curve(self, trial: Any) -> dict[int, float]:
        return dict(self.frozen(trial.number).intermediate_values)

    def end(self, trial: Any, outcome: Outcome, facts: Mapping[str, Any]) -> None:
        """Notes how a trial ended; with this it is finished."""
        known = {
            "steps": outcome.steps, "seconds": outcome.seconds, "best_step": outcome.best_step, "metrics": dict(outcome.metrics),
            "reason": outcome.reason, **facts,
        }  # fmt: skip
        self.tell(trial, outcome.ended, outcome.value, known)

    def tell(self, trial: Any, ended: str, value: float | None, facts: Mapping[str, Any]) -> None:
        from optuna.trial import TrialState

        state = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}[ended]
        with answering():
            with unless_given_up():
                trial.set_user_attr("facts", json.dumps(plain(facts), ensure_ascii=False))
            # a stopped trial's value is its last report, which Optuna takes by itself
            self.study.tell(trial, value if state == TrialState.COMPLETE else None, state=state, skip_if_finished=True)

    def position(self, trial: Any) -> int:
        """Which of the trials it is, from 0."""
        with answering():
            return position(self.study, trial.number)

    def give_back(self, trial: Any) -> None:
        """A trial beyond the budget, asked for by two workers at once: it is none."""
        from optuna.trial import TrialState

        with answering():
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)

    # -- facts about the study ------------------------------------------------------------------------------------------

    def fact(self, name: str, make: Callable[[], Any]) -> tuple[Any, bool]:
        """(a fact noted once for all workers, whether it is new)."""
        known = self.facts()
        if name in known:
            return known[name], False
        value = make()
        with answering():
            self.study.set_user_attr(name, json.dumps(plain(value), ensure_ascii=False))
        return self.facts()[name], True

    def facts(self) -> dict[str, Any]:
        """All facts noted so far."""
        with answering():
            return {name: json.loads(value) for name, value in self.study.user_attrs.items()}


def position(study: Any, number: int) -> int:
    """How many trials have a lower number; those beyond the budget do not count."""
    return sum(past.number < number and not past.user_attrs.get(SURPLUS) for past in study.get_trials(deepcopy=False))


@contextmanager
def answering() -> Iterator[None]:
    """Raises:
    DiskError: the storage cannot be read or written.
    """
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (StorageInternalError, OSError) as error:
        said = first_line(error.__cause__ or error)
        raise DiskError(f"the search's storage cannot be read or written ({said}); start the search again to go on") from error


def first_line(error: BaseException) -> str:
    """What an error says, without secrets."""
    return redact(next(iter(str(error).splitlines()), type(error).__name__))


@contextmanager
def unless_given_up() -> Iterator[None]:
    """A trial that another worker took for lost is finished in the storage; it stays so, and whoever still trains it goes on with the next."""
    from optuna.exceptions import UpdateFinishedTrialError

    with suppress(UpdateFinishedTrialError):
        yield


def require_optuna() -> Any:
    """Raises:
    ConfigError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError('a search needs Optuna, which is not installed; pip install "jaxtune[search]"') from error
    return optuna


def database(url: str) -> Any:
    """Optuna's storage in a database; its tables are made where they are not there.

    Raises:
        ConfigError: the driver is missing, or the database cannot be opened.
    """
    from optuna.storages import RDBStorage

    for attempt in (1, 2):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})  # a server may close a connection during a long training
        except ImportError as error:
            raise ConfigError(f"storage: {redact(url)}: its driver is not installed ({error}); pip install it") from error
        except Exception as error:
            if attempt == 2:  # the first attempt may have met another worker who was making the same tables
                raise ConfigError(f"storage: {redact(url)} cannot be opened ({first_line(error)})") from error
            time.sleep(0.5)


def journal(path: Path) -> Any:
    """Optuna's journal file. The search's folder is locked by us, so a lock or half a line here was left by a kill."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if path.is_file():
        with open(path, "r+b") as file:
            text = file.read()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                file.truncate(whole)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def record(trial: Any) -> Record:
    from optuna.trial import TrialState

    states: dict[Any, Literal["running", "complete", "stopped", "failed"]] = {
        TrialState.RUNNING: "running", TrialState.WAITING: "running",
        TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed",
    }  # fmt: skip
    attributes = trial.user_attrs
    value = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    return Record(
        trial.number,
        states[trial.state],
        json.loads(attributes.get("settings", "{}")),
        value,
        dict(trial.intermediate_values),
        attributes.get("worker"),
        json.loads(attributes.get("facts", "{}")),
    )


def pasts(records: Sequence[Record]) -> list[Past]:
    """What rungs need to know of the others."""
    return [Past(found.number, found.curve, found.state == "complete") for found in records if found.curve]


def ranked(records: Sequence[Record], higher_is_better: bool) -> list[Record]:
    """Best first: those that trained to their end, then those that were stopped, the later stopped before the earlier."""
    sign = -1.0 if higher_is_better else 1.0
    valued = [found for found in records if found.value is not None and found.state in ("complete", "stopped")]

    def order(found: Record) -> tuple[Any, ...]:
        reached = 0 if found.state == "complete" else -max(found.curve, default=0)
        return (found.state != "complete", reached, sign * (found.value or 0.0), found.number)

    return sorted(valued, key=order)
