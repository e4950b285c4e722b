"""A local head that is killed in mid-training: its job is seen as lost, and goes on where its run folder ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from own_home import OwnHome
from tiny import tiny_spec

from tltrain.jobs import local_cluster
from tltrain.jobs.local_state import read_state
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]

EPOCHS = 150


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnHome]:
    """A home with a local cluster `lab`, which is ended whatever happens."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    home = OwnHome(tmp_path)
    home.cluster_file("lab", "kind: local\nnum_cpus: 2\nnum_gpus: 0\n")
    yield home
    local_cluster.down("lab")


def kill_head() -> None:
    """Kill the processes of the head at once, as a machine does that runs out of memory or is turned off."""
    state = read_state("lab")
    assert state is not None
    for process in state.processes:
        if process.is_alive:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def test_the_job_of_a_killed_head_is_seen_as_lost_and_goes_on_from_its_run_folder(home: OwnHome) -> None:
    spec = tiny_spec(home.folder, {"train.epochs": EPOCHS}, name="long")
    run = RunFolder.at(spec.storage, spec.name)
    (home.folder / "long.yaml").write_text(dump_yaml(spec))
    home.run("cluster", "up", "lab")
    follower = home.start("submit", "long.yaml", "--cluster", "lab")
    try:
        home.until(lambda: run.exists() and len(run.metrics()) >= 5, "it does not train")
        assert home.job("long-")["state"] == "RUNNING"

        kill_head()
        began = time.monotonic()
        home.until(lambda: home.job("long-")["state"] == "FAILED", "the job is not seen as lost")
        assert time.monotonic() - began < 60
        lost = home.job("long-")
        assert (lost["cause"], lost["reason"]) == ("cluster lost", "the cluster lab is not up")
        before = len(run.metrics())
        assert before < EPOCHS, "it has ended before the head was killed"

        home.run("cluster", "up", "lab")  # whoever follows the job sends it again
        out, err = follower.communicate(timeout=240)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == 0, out + err
    assert "cluster lost: retry 1 of 3" in err.replace("Cluster", "cluster")
    assert f"{lost['id']} SUCCEEDED" in err
    assert "Resuming run long" in out
    assert [row["epoch"] for row in run.metrics()] == list(range(1, EPOCHS + 1))
    assert f"epoch {1}/" not in out.partition("Resuming run long")[2]
    assert run.state()["job"] == f"{lost['id']}-2"
