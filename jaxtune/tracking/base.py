"""What a tracker is, and the sink that keeps broken trackers from hurting the training."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from jaxtune.core.component import Component
from jaxtune.core.errors import JaxtuneError

_LOG = logging.getLogger(__name__)


class Sink(ABC):
    """Takes rows such as `{"step": 40, "split": "train", "loss": 0.41}`; a row may also hold lists (one number per class)."""

    @abstractmethod
    def log(self, row: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class Tracker(Component):
    """Chosen in YAML, opened once per process that writes (the first host)."""

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        """`folder` is the run's; `experiment` is the resolved one; `step` is where a resumed run goes on, later rows are taken back.

        Raises:
            ConfigError: something that must be installed or set is missing.
        """
        raise NotImplementedError

    def problems(self) -> list[str]:
        """What keeps it from working at all, such as a missing package; asked before anything is written."""
        return []


@final
class Trackers(Sink):
    """All trackers of a run as one sink, with metrics.jsonl, which needs no asking.

    A tracker that fails is told about once and left out from then on.

    Raises:
        ConfigError: a tracker cannot work at all (a missing package), told before the training starts.
        OSError: metrics.jsonl cannot be opened, which reports and resumed runs need.
    """

    def __init__(self, trackers: Sequence[Tracker], folder: Path, experiment: Mapping[str, Any], step: int = 0):
        from jaxtune.tracking.jsonl import JsonLines

        self._rows = JsonLines().open(folder, experiment, step)
        self._sinks: list[tuple[str, Sink]] = []
        for tracker in trackers:
            if isinstance(tracker, JsonLines):
                continue
            name = type(tracker).__name__
            try:
                self._sinks.append((name, tracker.open(folder, experiment, step)))
            except JaxtuneError:
                self.close()
                raise
            except Exception as error:
                _give_up(name, error)

    def log(self, row: Mapping[str, Any]) -> None:
        self._rows.log(row)
        for name, sink in list(self._sinks):
            try:
                sink.log(row)
            except Exception as error:
                self._sinks.remove((name, sink))
                _give_up(name, error)

    def close(self) -> None:
        while self._sinks:
            name, sink = self._sinks.pop()
            try:
                sink.close()
            except Exception as error:
                _give_up(name, error)


def _give_up(name: str, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    _LOG.warning("the tracker %s failed (%s); training goes on without it, metrics.jsonl keeps the numbers", name, why)
