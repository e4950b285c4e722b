"""A node that is taken back: the group writes a checkpoint in time and goes on elsewhere, with no step lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from programs import MODULE
from ray.cluster_utils import Cluster
from tiny import tiny_spec

from tltrain.engine.fit import fit
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.filterwarnings("default")]

DEADLINE_S = 60
WHERE = """
import ray

def placed_update(lane, step):
    (Path({folder!r}) / "node").write_text(ray.get_runtime_context().get_node_id())
    told_update(lane, step)

Lane.update = placed_update
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without CPUs to train on, and two nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_is_taken_back_costs_no_step(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODULE.format(folder=str(tmp_path), pause_s=0.3) + WHERE.format(folder=str(tmp_path))
    (tmp_path / "told_preempted.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {
        "allow_code": True,
        "model": {"factory": "told_preempted:build", "weights": "random", "freeze_depth": 2},
        "checkpoint.every_epochs": 100,
        "train.epochs": 6,
    }
    spec = tiny_spec(tmp_path, changes, name="run")
    run = RunFolder.at(spec.storage, spec.name)
    run.write_spec(dump_yaml(spec))
    drained = threading.Event()

    def drain() -> None:
        if not drained.is_set() and run.metrics():
            drained.set()
            drain_node(cluster, (tmp_path / "node").read_text())

    fit(spec, run, poll=drain)
    assert drained.is_set()
    lines = (tmp_path / "steps-0").read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(1, 31))
    assert len({line.split()[0] for line in lines}) == 2, "one process before, one after"


def drain_node(cluster: Cluster, node: str) -> None:
    ray_program = str(Path(sys.executable).parent / "ray")
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot machine"]
    where = ["--address", cluster.address, "--node-id", node, "--deadline-remaining-seconds", str(DEADLINE_S)]
    subprocess.run([ray_program, "drain-node", *where, *reason], check=True, capture_output=True)
