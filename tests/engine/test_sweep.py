"""Whole sweeps on a private cluster: exact, complete, not run twice, extended, and killed in mid-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from left_behind import placement_groups_left
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain.engine.cluster import connected
from tltrain.report.sweep import TRIALS_FILE
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.spec.schema import Spec
from tltrain.spec.space import Trial, apply
from tltrain.train.distributed import group_from_environment
from tltrain.train.session import fine_tune

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

RATE, DEPTH = "optim.learning_rate", "model.freeze_depth"
TIMINGS = ("lane", "train_images_per_s", "epoch_s")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One private cluster for all tests here."""
    with connected():
        yield


def sweep_spec(folder: Path, changes: dict[str, Any] | None = None, **sweep: Any) -> Spec:
    space = {RATE: {"grid": [0.01, 0.05]}, DEPTH: {"grid": [2, "all"]}}
    return tiny_spec(folder, {"sweep": {"space": space, **sweep}, **(changes or {})}, name="sweep")


def spec_file(folder: Path, spec: Spec) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(dump_yaml(spec))
    return path


def trials_of(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {entry["trial"]: entry for entry in run.read_json(TRIALS_FILE)}


def curve(run: RunFolder, lane: str) -> list[dict[str, Any]]:
    rows = [row for row in run.metrics() if row["lane"] == lane]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def curve_alone(spec: Spec, entry: dict[str, Any]) -> list[dict[str, Any]]:
    own = apply(spec, Trial(entry["trial"], entry["values"])).model_copy(update={"name": f"alone-{entry['trial']}"})
    run = RunFolder.at(own.storage, own.name)
    fine_tune(own, run, group_from_environment(use_gpu=False, timeout_s=60))
    return curve(run, "lane-0")


def test_a_grid_is_exact_complete_not_run_twice_and_extended(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = sweep_spec(tmp_path)
    path, run = spec_file(tmp_path, spec), RunFolder.at(spec.storage, spec.name)
    assert far_side.execute(load_spec(path), local=False) == 0
    trials = trials_of(run)
    assert [(entry["state"], entry["epochs"]) for entry in trials.values()] == [("finished", 2)] * 4
    for trial, entry in trials.items():
        assert curve(run, trial) == curve_alone(spec, entry), trial
    assert {"trials.parquet", "report.html", "evaluation.json", "predictions.parquet"} <= set(run.folder.names())
    winner = RunFolder.open(f"{run.uri}/winner")
    assert {"model", "evaluation.json", "predictions.parquet", "spec.yaml"} <= set(winner.folder.names())
    assert winner.state()["state"] == "finished"
    assert winner.model.names() == ["model.json", "model.safetensors"]

    capsys.readouterr()
    assert far_side.execute(load_spec(path), local=False) == 0
    assert "nothing was trained" in capsys.readouterr().err

    assert far_side.extend(run.uri, 2, [f"sweep.space.{RATE}.grid=[0.02]"]) == 0
    extended = trials_of(run)
    assert {trial: extended[trial] for trial in trials} == trials, "what was run is not run again"
    added = [extended[trial] for trial in ("t0004", "t0005")]
    assert [(entry["state"], entry["values"]) for entry in added] == [
        ("finished", {RATE: 0.02, DEPTH: 2}),
        ("finished", {RATE: 0.02, DEPTH: "all"}),
    ]
    assert len(run.metrics()) == 6 * 2
    assert run.state()["state"] == "finished"


@pytest.mark.slow
def test_trials_with_workers_of_their_own_give_the_same_curves_and_leave_nothing_behind(
    cluster: None, tmp_path: Path
) -> None:
    spec = sweep_spec(tmp_path, isolation="process", scheduler="asha")
    run = RunFolder.at(spec.storage, spec.name)
    assert far_side.execute(load_spec(spec_file(tmp_path, spec)), local=False) == 0
    trials = trials_of(run)
    assert {entry["state"] for entry in trials.values()} <= {"finished", "stopped"}
    assert "finished" in {entry["state"] for entry in trials.values()}
    for trial, entry in trials.items():
        assert curve(run, trial) == curve_alone(spec, entry)[: entry["epochs"]], trial
    assert RunFolder.open(f"{run.uri}/winner").state()["state"] == "finished"
    assert placement_groups_left() == []


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_goes_on_with_what_had_not_ended(tmp_path: Path) -> None:
    space = {RATE: {"grid": [0.01, 0.05]}, "train.epochs": {"grid": [2, 40]}}
    spec = sweep_spec(tmp_path, {"sweep.space": space})
    path, run = spec_file(tmp_path, spec), RunFolder.at(spec.storage, spec.name)
    command = [sys.executable, "-m", "tltrain.run", str(path)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        try:
            before = _wait_for_some_to_end(process, run)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert run.state()["state"] == "running"
    subprocess.run(command, check=True, timeout=240)
    after = trials_of(run)
    assert [(entry["state"], entry["epochs"]) for entry in after.values()] == [("finished", 2), ("finished", 40)] * 2
    assert {trial: after[trial] for trial in before} == before
    assert [row["epoch"] for row in curve(run, "t0001")] == list(range(1, 41))
    assert RunFolder.open(f"{run.uri}/winner").state()["state"] == "finished"


def _wait_for_some_to_end(process: subprocess.Popen[bytes], run: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the trials that have ended, as soon as there are some."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if run.folder.exists(TRIALS_FILE):
            ended = {name: entry for name, entry in trials_of(run).items() if entry["state"] == "finished"}
            if ended:
                assert len(ended) < 4, list(ended)
                return ended
        time.sleep(0.05)
    raise AssertionError(f"no trial has ended; exit code {process.poll()}")
