"""A search, from its file to the winner: trials one after the other in one process, each noted as it ends, all of it able to go on.

What a trial is given follows from the finished trials and the search's seed alone. So a search that is killed and started again ends with
the trials that it would have had.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtune.core.errors import ConfigError, DiskError, FolderLockedError, HangError, Interrupted, JaxtuneError, Preempted
from jaxtune.core.files import Rows
from jaxtune.core.heap import Heap
from jaxtune.core.printable import printable
from jaxtune.core.redact import redact
from jaxtune.experiment import Experiment
from jaxtune.search.ledger import NARROWED, Ledger, Outcome, Record, answering, pasts, position, ranked
from jaxtune.search.parameters import Parameter
from jaxtune.search.rungs import Rungs
from jaxtune.search.settings import DEFAULT_TRIALS, Search
from jaxtune.search.space import Space
from jaxtune.search.strategies import Listed, Seeded
from jaxtune.search.trial import Training
from jaxtune.search.workbench import Workbench
from jaxtune.training.signals import Signals
from jaxtune.training.watchdog import Watchdog

_LOG = logging.getLogger(__name__)
FATAL = (Interrupted, Preempted, HangError, DiskError, FolderLockedError)  # of the search, not of one trial
Watch = Callable[[Any], None]


@dataclass(frozen=True)
class TrialBegan:
    number: int
    settings: Mapping[str, Any]
    again: bool  # it was under way when the search was stopped


@dataclass(frozen=True)
class TrialEnded:
    record: Record
    is_best: bool
    of: int | None  # how many trials there will be


@dataclass(frozen=True)
class Narrowed:
    """The ranges that the next trials are chosen from."""

    round: int
    trial: int  # the first one
    ranges: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class FinalistEnded:
    trial: int
    seed: int
    value: float | None


class Study:
    """A search under way.

    Attributes:
        folder: of the search.
        own: this worker's part of it; the folder itself where nobody else works on it.
    """

    def __init__(
        self, search: Search, space: Space, ledger: Ledger, folder: Path, own: Path, watch: Watch, workbench: Workbench, rungs: Rungs | None
    ):
        self.search, self.space, self.ledger, self.folder, self.own, self.watch = search, space, ledger, folder, own, watch
        self.workbench, self.rungs = workbench, rungs
        self.events = Rows(folder / "events.jsonl")
        self.repeats = Rows(folder / "finalists.jsonl")
        self.rows = search.strategy.rows(space.parameters, search.seed)
        self.trials = trials_of(search, self.rows)
        self.signals: Signals | None = None
        self.watchdog: Watchdog | None = None
        ledger.study.sampler = self.sampler()

    def sampler(self) -> Seeded:
        if self.rows is not None:
            stored = [{key: self.space.parameters[key].stored(value) for key, value in row.items()} for row in self.rows]
            return Listed(stored, position)
        return Seeded(self.search.strategy.make_sampler, self.search.seed, self.joint)

    def joint(self, number: int) -> dict[str, Any]:
        """The distributions that a model may see together: those of every trial, whatever its other settings."""
        return {key: parameter.distribution() for key, parameter in self.parameters(number).items() if not parameter.when}

    # -- the story ------------------------------------------------------------------------------------------------------

    def run(self, join: bool) -> None:
        """Trials until the budget is used up; then, unless this process only joined, waits for the others' and repeats the finalists.

        Raises:
            Preempted, Interrupted: a signal came; the search can be started again.
            ConfigError: no trial could be trained.
        """
        with Signals() as self.signals, Watchdog(self.own) as self.watchdog:
            for number in self.ledger.unfinished():
                self.events.append({"event": "resumed", "trial": number})
                self.one(self.ledger.again(number), again=True)
            while self.has_budget():
                trial = self.ledger.ask()
                if self.trials is not None and self.ledger.position(trial) >= self.trials:
                    self.ledger.give_back(trial)
                    break
                self.one(trial)
            if join:
                return
            while self.ledger.elsewhere():
                self.stop_if_asked()
                time.sleep(1.0)
            records = self.ledger.records()
            if not ranked(records, self.space.higher_is_better):
                reasons = dict.fromkeys(found.reason for found in records)
                raise ConfigError([f"all {len(records)} trials failed", *list(reasons)[:5]])
            if self.search.finalists is not None:
                self.repeat_finalists(records)

    def has_budget(self) -> bool:
        records = self.ledger.records()
        if self.trials is not None and len(records) >= self.trials:
            return False
        spent = sum(float(found.facts.get("seconds", 0.0)) for found in records)
        return self.search.seconds is None or spent < self.search.seconds

    def stop_if_asked(self) -> None:
        asked = self.requested(0)
        if asked is not None:
            raise asked("the search was stopped; start it again to go on")

    def requested(self, step: int) -> type[JaxtuneError] | None:
        assert self.signals is not None
        return self.signals.requested(step)

    def one(self, trial: Any, again: bool = False) -> None:
        """A trial from its settings to its end, however it ends."""
        self.stop_if_asked()
        number = trial.number
        with answering():
            settings = self.space.suggest(trial, self.parameters(number))
            trial.set_user_attr("settings", json.dumps(settings, ensure_ascii=False))
        self.watch(TrialBegan(number, settings, again))
        self.ledger.mark(trial)
        seen = self.ledger.curve(trial)

        def requested(step: int) -> type[JaxtuneError] | None:
            self.ledger.keep(trial)
            return self.requested(step)

        def judge(step: int, value: float) -> str:
            self.ledger.report(trial, step, value)
            seen.setdefault(step, value)  # as the storage has it: the first value counts, after a rollback too
            if self.rungs is None:
                return ""
            curve = {at: known for at, known in seen.items() if at <= step}
            others = [past for past in pasts(self.ledger.records()) if past.number != number]
            rung = self.rungs.stopped_at(number, curve, others, self.space.higher_is_better)
            return "" if rung is None else f"not among the best at the rung of step {rung}"

        folder = self.own / "trials" / f"{number:04d}"
        compiled = self.workbench.compilations
        outcome = self.train(lambda: self.space.experiment(settings), folder, requested, judge)
        facts = {"compilations": self.workbench.compilations - compiled, "memory_bytes": resident_bytes()}
        self.ledger.end(trial, outcome, facts)
        shutil.rmtree(folder, ignore_errors=True)
        records = self.ledger.records()
        best = ranked(records, self.space.higher_is_better)
        (ended,) = [found for found in records if found.number == number]
        self.watch(TrialEnded(ended, bool(best) and best[0].number == number, self.trials))

    def train(
        self,
        make: Callable[[], Experiment],
        folder: Path,
        requested: Callable[[int], type[JaxtuneError] | None],
        judge: Callable[[int, float], str] = lambda step, value: "",
    ) -> Outcome:
        """One training; what goes wrong with it alone is its outcome."""
        assert self.watchdog is not None
        began = time.monotonic()
        try:
            session = self.workbench.session(make())
            return Training(self.workbench, session, folder, self.watchdog, self.search.save_seconds, requested, judge).run()
        except FATAL:
            raise
        except Exception as error:  # one impossible or diverging setting must not end the search; that all fail is told at its end
            text = str(error)
            if not isinstance(error, JaxtuneError):
                text = f"{type(error).__name__}: {error}"
                _LOG.warning("%s failed", folder.name, exc_info=True)
            steps = max((row.get("step", 0) for row in Rows(folder / "evaluations.jsonl").read()), default=0)
            reason = redact(printable(" ".join(text.split()), 600))
            return Outcome("failed", None, None, {}, steps, time.monotonic() - began, reason)
        finally:
            gc.collect()  # the closures of a training refer to each other in circles; their arrays shall go now
            Heap().after_other_work()

    # -- from broad to narrow -------------------------------------------------------------------------------------------

    def parameters(self, number: int) -> Mapping[str, Parameter]:
        """The ranges that trial `number` is chosen from."""
        narrow, parameters = self.search.narrow, dict(self.space.parameters)
        if narrow is None or self.trials is None:
            return parameters
        for stage in range(1, number * (narrow.rounds + 1) // self.trials + 1):
            first = -(-stage * self.trials // (narrow.rounds + 1))
            found, new = self.ledger.fact(f"{NARROWED}{stage}", partial(self.narrowed, stage, first, dict(parameters), narrow.keep))
            for key, (low, high) in found["ranges"].items():
                parameters[key] = parameters[key].model_copy(update={"low": low, "high": high})
            if new:
                self.events.append({"event": "narrowed", **found})
                self.watch(Narrowed(**found))
        return parameters

    def narrowed(self, stage: int, first: int, parameters: Mapping[str, Parameter], keep: float) -> dict[str, Any]:
        """What `Narrowed` tells: new ends of every range, around the best share `keep` of the trials before `first`."""
        earlier = ranked([found for found in self.ledger.records() if found.number < first], self.space.higher_is_better)
        best = earlier[: max(2, round(keep * len(earlier)))]
        ranges = {}
        for key, parameter in parameters.items():
            values = [found.settings[key] for found in best if key in found.settings]
            if values and hasattr(parameter, "low"):
                new: Any = parameter.narrowed(values)
                ranges[key] = (new.low, new.high)
        return {"round": stage, "trial": first, "ranges": ranges}

    # -- finalists ------------------------------------------------------------------------------------------------------

    def repeat_finalists(self, records: Sequence[Record]) -> None:
        """The best trials again with other seeds; rows of finalists.jsonl that are there already stay."""
        assert self.search.finalists is not None
        done = {(row["trial"], row["seed"]) for row in self.repeats.read()}
        complete = [found for found in ranked(records, self.space.higher_is_better) if found.state == "complete"]
        for offset in range(1, self.search.finalists.seeds + 1):
            seed = self.space.base.seed + offset
            for finalist in complete[: self.search.finalists.count]:
                if (finalist.number, seed) in done:
                    continue
                self.stop_if_asked()
                folder = self.own / "trials" / f"{finalist.number:04d}-seed-{seed}"
                settings = {**finalist.settings, "seed": seed}
                compiled = self.workbench.compilations
                outcome = self.train(lambda settings=settings: self.space.experiment(settings), folder, self.requested)
                row = {"trial": finalist.number, "seed": seed, "value": outcome.value, "steps": outcome.steps, "seconds": outcome.seconds}
                row |= {"reason": outcome.reason, "compilations": self.workbench.compilations - compiled}
                self.repeats.append(row)
                shutil.rmtree(folder, ignore_errors=True)
                self.watch(FinalistEnded(finalist.number, seed, outcome.value))


def made_ready(search: Search, space: Space) -> tuple[Workbench, Rungs | None]:
    """The experiment's data and model opened, and where trials are compared; nothing is trained or written.

    Raises:
        ConfigError, DataError: as of a run of the experiment, or its trials could not be compared.
    """
    workbench = Workbench()
    session = workbench.session(space.base)
    session.check()
    if "validation" not in session.prepared.splits:
        raise ConfigError("data.split: a search compares validation numbers, but there is no validation split; give it a share")
    every, steps = space.base.evaluation.every_steps, sum(session.steps(number) for number in range(len(space.base.phases)))
    rungs = search.strategy.rungs(steps, every)
    if rungs is not None and every is None and "evaluation.every_steps" not in space.parameters:
        raise ConfigError(
            "strategy: trials are compared while they train, but the experiment is evaluated at the end of a phase only; "
            f"write set: {{evaluation.every_steps: {max(1, steps // 9)}}}"
        )
    return workbench, rungs


def trials_of(search: Search, rows: Sequence[Any] | None) -> int | None:
    """How many trials there will be; None where only time ends the search."""
    if rows is not None:
        return min(len(rows), search.trials or len(rows))
    return search.trials or (None if search.seconds is not None else DEFAULT_TRIALS)


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()
