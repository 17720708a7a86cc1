"""A stand-in for the packages wandb and mlflow."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class Service:
    """Stands for both packages: keeps what it is told; `when` it raises or hangs."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.raises, self.hangs = "", ""
        self.released = threading.Event()

    def do(self, what: str, **facts: Any) -> None:
        if what == self.raises:
            raise RuntimeError("quota")
        if what == self.hangs:
            self.released.wait(30)
        self.told.append((what, facts))

    def of(self, what: str) -> list[Any]:
        return [facts for name, facts in self.told if name == what]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    it = Service()
    wandb, mlflow, entities = ModuleType("wandb"), ModuleType("mlflow"), ModuleType("mlflow.entities")

    def init(**facts: Any) -> Any:
        it.do("open", **facts)
        return SimpleNamespace(
            log=lambda row: it.do("log", **row),
            finish=lambda: it.do("close"),
            define_metric=lambda *names, **more: it.do("define", names=names, **more),
        )

    class Client:
        def __init__(self, tracking_uri: str | None):
            it.do("open", uri=tracking_uri)

        def get_experiment_by_name(self, name: str) -> Any:
            return None

        def create_experiment(self, name: str) -> str:
            it.do("experiment", name=name)
            return "7"

        def create_run(self, place: str, run_name: str, tags: Mapping[str, str]) -> Any:
            it.do("run", place=place, name=run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            it.do("params" if params else "log", run=run_id, metrics=list(metrics), params=list(params))

        def set_terminated(self, run_id: str) -> None:
            it.do("close", run=run_id)

    wandb.init = init  # type: ignore[attr-defined]
    mlflow.MlflowClient = Client  # type: ignore[attr-defined]
    mlflow.entities = entities  # type: ignore[attr-defined]
    entities.Metric = lambda *parts: parts  # type: ignore[attr-defined]
    entities.Param = lambda *parts: parts  # type: ignore[attr-defined]
    for name, module in (("wandb", wandb), ("mlflow", mlflow), ("mlflow.entities", entities)):
        monkeypatch.setitem(sys.modules, name, module)
    yield it
    it.released.set()
