"""MLflow, by its client, which keeps nothing global: a notebook's own active run stays what it is."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from jaxtune.core.files import plain, write_whole
from jaxtune.core.nested import leaves
from jaxtune.core.redact import redact
from jaxtune.tracking.background import InBackground, numbers
from jaxtune.tracking.base import Sink, Tracker

MISSING = "tracking: kind mlflow needs the package mlflow; install it with: pip install mlflow"
FILE = "mlflow.json"  # the run's id there, so that a resumed run goes on in it
LONGEST_PARAMETER = 500
AT_ONCE = 100  # parameters in a call, as the service allows


class Mlflow(Tracker):
    """Sends numbers to MLflow, from a thread of its own: a service that hangs or fails does not touch the training."""

    uri: str | None = Field(
        default=None, description="address or folder of the tracking store; null: MLFLOW_TRACKING_URI, or mlflow's default"
    )
    experiment: str = Field(default="jaxtune", description="name of the MLflow experiment; made when it is not there")
    close_seconds: float = Field(default=30.0, gt=0, description="how long the end of the run waits for what is still to be sent")

    def problems(self) -> list[str]:
        try:
            package()
        except ImportError:
            return [MISSING]
        return []

    def open(self, folder: Path, experiment: Mapping[str, Any], step: int = 0) -> Sink:
        return InBackground("Mlflow", lambda: self.start(folder, experiment), close_seconds=self.close_seconds)

    def start(self, folder: Path, experiment: Mapping[str, Any]) -> Sink:
        mlflow = package()
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        known = earlier(folder / FILE)
        if known is None:
            found = client.get_experiment_by_name(self.experiment)
            place = client.create_experiment(self.experiment) if found is None else found.experiment_id
            known = client.create_run(place, run_name=folder.name, tags={"jaxtune.folder": str(folder)}).info.run_id
            write_whole(folder / FILE, json.dumps({"run_id": known}) + "\n")
            settings = json.loads(redact(json.dumps(plain(experiment))))
            parameters = [mlflow.entities.Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in leaves(settings)]
            for start in range(0, len(parameters), AT_ONCE):
                client.log_batch(known, params=parameters[start : start + AT_ONCE])
        return _MlflowSink(client, known, mlflow.entities.Metric)


class _MlflowSink(Sink):
    def __init__(self, client: Any, run_id: str, metric: Any):
        self._client, self._run_id, self._metric = client, run_id, metric

    def log(self, row: Mapping[str, Any]) -> None:
        moment = int(float(row.get("time") or time.time()) * 1000)
        found = [self._metric(name, value, moment, int(row["step"])) for name, value in numbers(row).items()]
        self._client.log_batch(self._run_id, metrics=found)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def earlier(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError):
        return None


def package() -> Any:
    """The package, which is no part of any installation of jaxtune.

    Raises:
        ImportError: it is missing.
    """
    import mlflow.entities  # pyright: ignore[reportMissingImports]

    return mlflow
