"""MLflow with its real server and SQLite, W&B offline: both are left out where they are not installed."""

from __future__ import annotations

import importlib
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from track_helpers import begin_run, finish_run, row, spec_in, write_trials

from tltrain.track.mirror import Mirror

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server whose runs are in SQLite."""
    pytest.importorskip("mlflow.server", reason="needs mlflow with its server")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = [
        "--backend-store-uri",
        f"sqlite:///{folder}/runs.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *stores], stdout=log, stderr=log, cwd=folder, start_new_session=True)
        try:
            yield wait_for(f"http://127.0.0.1:{port}", process, folder / "log")
        finally:
            process.terminate()
            process.wait(30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture
def mlflow(mlflow_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """A client of the server; each test has an experiment of its own."""
    tracking: Any = importlib.import_module("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return tracking.MlflowClient()


def mlflow_mirror(spec: Any, run: Any) -> Mirror:
    from tltrain.track.mlflow import Mlflow

    return Mirror(spec, run, "mlflow", Mlflow())


def runs_of(client: Any, experiment: str) -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return sorted(client.search_runs([found.experiment_id]), key=lambda run: run.info.run_name)


def test_mlflow_shows_a_resumed_run_whole_and_once(mlflow: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = spec_in(tmp_path, track=["mlflow"])
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    first = mlflow_mirror(spec, run)
    first.update()
    noted = run.folder.read_bytes("tracking.json")
    run.record_metrics([row("lane-0", 2)])
    first.update()
    run.folder.write_bytes("tracking.json", noted)  # killed before it was noted
    run.record_metrics([row("lane-0", 3)])
    finish_run(run)
    mlflow_mirror(spec, run).end("finished")

    (shown,) = runs_of(mlflow, request.node.name)
    assert (shown.info.run_name, shown.info.status) == ("single", "FINISHED")
    assert shown.data.params["model.name"] == "resnet18"
    assert shown.data.params["data.train"] == "s3://bucket/images"
    assert "secret" not in str(shown.data.params)
    history = mlflow.get_metric_history(shown.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [
        (10, 2.0),
        (20, 1.0),
        (30, pytest.approx(2 / 3)),
    ]
    assert shown.data.metrics["test/accuracy"] == 0.5
    names = {file.path for place in ("", "model") for file in mlflow.list_artifacts(shown.info.run_id, place)}
    assert {"evaluation.json", "report.html", "model/model.json", "model/model.safetensors"} <= names


def test_mlflow_shows_a_sweep_as_parent_and_children(
    mlflow: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    spec = spec_in(tmp_path, sweep=True, track=["mlflow"])
    run = begin_run(spec)
    write_trials(run, t0000="failed", t0001="finished")
    run.record_metrics([row("t0000", 1), row("t0001", 1), row("t0001", 2)])
    finish_run(run)
    mlflow_mirror(spec, run).end("finished")

    parent, failed, finished = runs_of(mlflow, request.node.name)
    assert [each.info.run_name for each in (parent, failed, finished)] == ["sweep", "sweep-t0000", "sweep-t0001"]
    assert {each.data.tags["mlflow.parentRunId"] for each in (failed, finished)} == {parent.info.run_id}
    assert [each.info.status for each in (parent, failed, finished)] == ["FINISHED", "FAILED", "FINISHED"]
    assert finished.data.params == {"optim.learning_rate": "0.1"}
    assert finished.data.metrics["epoch"] == 2


def test_mlflow_goes_on_with_an_interrupted_run(mlflow: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    spec = spec_in(tmp_path, track=["mlflow"])
    run = begin_run(spec)
    run.record_metrics([row("lane-0", 1)])
    mlflow_mirror(spec, run).end("interrupted")
    (shown,) = runs_of(mlflow, request.node.name)
    assert shown.info.status == "KILLED"
    mlflow_mirror(spec, run).update()
    (shown,) = runs_of(mlflow, request.node.name)
    assert shown.info.status == "RUNNING"
    mlflow.delete_run(shown.info.run_id)
    mlflow_mirror(spec, run).update()
    (anew,) = runs_of(mlflow, request.node.name)
    assert anew.info.run_id != shown.info.run_id
    assert [metric.step for metric in mlflow.get_metric_history(anew.info.run_id, "epoch")] == [10]


def test_wandb_offline_has_a_group_with_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    from tltrain.track.wandb import WandB

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "test-project")
    spec = spec_in(tmp_path, sweep=True, track=["wandb"])
    run = begin_run(spec)
    write_trials(run, t0000="finished", t0001="running")
    run.record_metrics([row("t0000", 1), row("t0001", 1)])
    Mirror(spec, run, "wandb", WandB(run.folder)).end("interrupted")
    run.record_metrics([row("t0001", 2)])
    write_trials(run, t0000="finished", t0001="finished")
    finish_run(run)
    Mirror(spec, run, "wandb", WandB(run.folder)).end("finished")

    seen = wandb_records(tmp_path / "sweep" / "wandb")
    parents = {id for id, each in seen.items() if each["job_type"] == "sweep"}
    (parent,) = parents
    assert {each["group"] for each in seen.values()} == {parent}
    assert {each["project"] for each in seen.values()} == {"test-project"}
    assert {each["name"]: each["rows"] for each in seen.values() if each["job_type"] == "trial"} == {
        "sweep-t0000": [(10, 2.0)],
        "sweep-t0001": [(10, 2.0), (20, 1.0)],
    }
    assert "secret" not in str(seen)


def wandb_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Id -> what the offline files of a run say, over all of its attempts."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    seen: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("offline-run-*/*.wandb")):
        entry = seen.setdefault(path.stem.removeprefix("run-"), {"rows": []})
        for data in log_records(path.read_bytes()):
            record = messages.Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                run = record.run
                entry |= {"name": run.display_name, "group": run.run_group, "job_type": run.job_type}
                entry |= {"project": run.project, "config": str(run.config)}
            elif record.WhichOneof("record_type") == "history":
                items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                if "train/loss" in items:
                    entry["rows"].append((record.history.step.num, items["train/loss"]))
    return seen


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind W&B's own header of 7 bytes."""
    block, header, at, record = 32768, 7, 7, b""
    while at + header <= len(data):
        left = block - at % block
        if left < header:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""
