"""MLflow: a run is a run there, a sweep a parent with its trials as children. Server and experiment as MLflow has them.

MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLFLOW_EXPERIMENT_ID are read, and so are its variables for credentials.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tltrain.track.entries import Entry

EXPERIMENT = "tltrain"
"""Name of the experiment where the environment names none."""
STATES = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST_VALUE = 6000
_PARAMETERS_AT_A_TIME = 100
_ASKED = "epoch"
"""The metric that every row has."""


class Mlflow:
    """Entries on the tracking server of the environment. Raises ImportError without MLflow."""

    def __init__(self) -> None:
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._exceptions: Any = importlib.import_module("mlflow.exceptions")
        tracking: Any = importlib.import_module("mlflow.tracking")
        self._client = tracking.MlflowClient()
        self._experiment = ""

    def begin(self, entry: Entry, known: str | None) -> tuple[str, bool]:
        """Go on with a run of the server, or create one."""
        if known is not None and self._exists(known):
            self._client.update_run(known, status="RUNNING")
            return known, False
        tags = {"tltrain.kind": entry.kind} | ({} if entry.parent is None else {"mlflow.parentRunId": entry.parent})
        run = self._client.create_run(self._experiment_id(), tags=tags, run_name=entry.title)
        id = run.info.run_id
        values = [self._entities.Param(key, str(value)[:LONGEST_VALUE]) for key, value in entry.parameters.items()]
        for start in range(0, len(values), _PARAMETERS_AT_A_TIME):
            self._client.log_batch(id, params=values[start : start + _PARAMETERS_AT_A_TIME])
        return id, True

    def _exists(self, id: str) -> bool:
        try:
            return self._client.get_run(id).info.lifecycle_stage == "active"
        except self._exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment_id(self) -> str:
        if not self._experiment:
            self._experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._named_experiment()
        return self._experiment

    def _named_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except self._exceptions.MlflowException as error:
            found = self._client.get_experiment_by_name(name)  # somebody else was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id

    def last_step(self, id: str) -> int | None:
        """Ask the server: what was told last may not stand in the notes."""
        return max((metric.step for metric in self._client.get_metric_history(id, _ASKED)), default=None)

    def log(self, id: str, step: int, values: Mapping[str, float]) -> None:
        """Send metrics in one request."""
        now_ms = round(time.time() * 1000)
        # In this order, so that a row that was cut short is sent again.
        ordered = sorted(values.items(), key=lambda item: item[0] == _ASKED)
        self._client.log_batch(id, metrics=[self._metric(name, value, now_ms, step) for name, value in ordered])

    def _metric(self, name: str, value: float, now_ms: int, step: int) -> Any:
        return self._entities.Metric(name, value, now_ms, step)

    def add_file(self, id: str, path: Path, folder: str) -> None:
        """Upload an artifact."""
        self._client.log_artifact(id, str(path), folder or None)

    def keep(self) -> None:
        """The server has it."""

    def end(self, id: str, state: str) -> None:
        """Set the run's status."""
        self._client.set_terminated(id, STATES[state])

    def close(self) -> None:
        """Every call has been sent."""
