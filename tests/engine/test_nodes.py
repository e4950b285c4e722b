"""Training over two nodes, each a raylet of its own: spread workers, and the loss of a node in mid-training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from test_fit import digest, prepared
from tiny import tiny_spec

from tltrain.engine.cluster import live_nodes
from tltrain.engine.fit import fit
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import Spec

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


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


def two_workers(folder: Path, name: str) -> Spec:
    changes = {
        "resources": {"num_workers": 2, "placement": "spread", "wait_s": 60},
        "checkpoint.every_steps": 1,
        "train.epochs": 8,
    }
    return tiny_spec(folder, changes, name=name)


def test_a_node_lost_in_mid_training_costs_a_restart_and_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    clean, struck = (prepared(two_workers(tmp_path, name)) for name in ("clean", "struck"))
    fit(two_workers(tmp_path, "clean"), clean, poll=lambda: None)
    assert len(live_nodes()) == 3

    lost = threading.Event()

    def lose_a_node() -> None:
        if not lost.is_set() and struck.metrics():
            lost.set()
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            cluster.add_node(num_cpus=1)

    fit(two_workers(tmp_path, "struck"), struck, poll=lose_a_node)
    assert lost.is_set()
    assert struck.state()["attempts"] == 2
    assert digest(struck) == digest(clean)
    assert [row["epoch"] for row in RunFolder.open(struck.uri).metrics()] == list(range(1, 9))
