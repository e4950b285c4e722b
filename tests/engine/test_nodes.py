"""Two nodes, each a raylet of its own: checked before training, spread workers, a node lost in mid-training."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from test_fit import digest, prepared
from tiny import tiny_spec

from tltrain.engine import cluster as engine_cluster
from tltrain.engine import node_check, preflight
from tltrain.engine.cluster import live_nodes, wait_for_room, wait_for_room_again
from tltrain.engine.fit import fit
from tltrain.engine.sweep import sweep
from tltrain.engine.sweep_record import SweepRecord
from tltrain.errors import LostError, ResourceError
from tltrain.run_folder import RunFolder
from tltrain.spec.schema import ResourcesSpec, Spec

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
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


def test_before_training_a_node_that_is_not_like_the_others_is_named(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One node has another home folder and so other data and weights, and a network interface that is not there."""
    spec = two_workers(tmp_path, "checked")
    run, request = prepared(spec), wait_for_room(spec.resources)
    with caplog.at_level(logging.INFO):
        preflight.preflight(spec, run, request)
    assert "all 2 nodes see data, storage and weights, and can meet" in caplog.text
    assert run.folder.names() == ["spec.yaml"]

    home = {"HOME": str(tmp_path / "elsewhere"), "GLOO_SOCKET_IFNAME": "nosuch0"}
    odd = cluster.add_node(num_cpus=1, env_vars=home)
    try:
        cluster.wait_for_nodes()
        at_home = os.path.relpath(tmp_path / "train.parquet", Path.home())
        changed = spec.model_copy(update={"data": spec.data.model_copy(update={"train": f"~/{at_home}"})})
        began = time.monotonic()
        with pytest.raises(ResourceError) as caught:
            preflight.preflight(changed, run, request)
        assert time.monotonic() - began < 60
    finally:
        cluster.remove_node(odd)
    named = {problem.where for problem in caught.value.problems if problem.key == "data.train"}
    assert len(named) == 1
    assert any(problem.where in named and "GLOO_SOCKET_IFNAME" in problem.action for problem in caught.value.problems)


@pytest.mark.slow
def test_a_node_lost_while_it_is_checked_is_no_mistake_of_its_set_up(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = two_workers(tmp_path, "lost")
    run, dying = prepared(spec), cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    its_id = dying.node_id  # the task takes along what it names

    def look(*arguments: Any, **options: Any) -> node_check.Findings:
        if arguments[-1] == its_id:
            time.sleep(600)
        return node_check.look(*arguments, **options)

    monkeypatch.setattr(preflight, "look", look)
    end = threading.Timer(8.0, lambda: cluster.remove_node(dying, allow_graceful=False))
    end.start()
    with caplog.at_level(logging.INFO):
        request = preflight.preflight(spec, run, wait_for_room(spec.resources))
    end.join()
    assert request.max_workers == 2
    assert f"{its_id[:8]}) was lost while it was checked" in caplog.text
    assert "all 2 nodes see data, storage and weights, and can meet" in caplog.text


@pytest.mark.slow
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


def test_a_lost_node_that_does_not_come_back_is_no_mistake_of_the_user(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_cluster, "RETURN_S", 0.1)
    resources = ResourcesSpec(num_workers=50)
    with pytest.raises(ResourceError):
        wait_for_room(resources)
    with pytest.raises(LostError, match=r"a node was lost.*50 worker\(s\)"):
        wait_for_room_again(resources)


@pytest.mark.slow
def test_lanes_are_spread_over_nodes_and_a_lost_nodes_lanes_go_to_the_others(cluster: Cluster, tmp_path: Path) -> None:
    space = {"optim.learning_rate": {"grid": [0.01, 0.03, 0.05]}, "model.freeze_depth": {"grid": [2, "all"]}}
    changes = {"train.epochs": 12, "sweep": {"space": space}}
    clean, struck = (tiny_spec(tmp_path, changes, name=name) for name in ("clean", "struck"))
    shares = dict.fromkeys(["a", "b", "c", "d", "e", "head"], 1 / 6)
    sweep(clean, prepared(clean), shares, poll=lambda _: None)
    curves = curves_of(RunFolder.at(clean.storage, "clean"))
    lost: list[str] = []

    def lose_a_node(record: SweepRecord) -> None:
        if not lost and len(record.rows) >= 6:
            node = next(iter(cluster.worker_nodes))
            lost.append(node.node_id)
            assert not ray.available_resources().get("CPU"), "one group on each of two nodes with one CPU each"
            cluster.remove_node(node, allow_graceful=False)

    sweep(struck, prepared(struck), shares, poll=lose_a_node)
    cluster.add_node(num_cpus=1)
    run = RunFolder.at(struck.storage, "struck")
    assert lost
    assert {entry["state"] for entry in run.read_json("trials.json")} == {"finished"}
    assert curves_of(run) == curves


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_group_comes_back_with_a_node_and_every_lane_ends_as_if_nothing_had_happened(
    cluster: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    space = {"optim.learning_rate": {"grid": [0.01, 0.03, 0.05]}, "model.freeze_depth": {"grid": [2, "all"]}}
    changes = {"train.epochs": 40, "sweep": {"space": space}}
    clean, struck = (tiny_spec(tmp_path, changes, name=name) for name in ("clean", "struck"))
    shares = dict.fromkeys(["a", "b", "c", "d", "e", "head"], 1 / 6)
    sweep(clean, prepared(clean), shares, poll=lambda _: None)
    lost, came = threading.Event(), threading.Event()
    busy: list[int] = []

    def lose_a_node_and_bring_another(record: SweepRecord) -> None:
        if not lost.is_set() and len(record.rows) >= 6:
            lost.set()
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        elif "no node is left for worker group" in caplog.text and not came.is_set():
            came.set()
            cluster.add_node(num_cpus=1)
        elif "takes its share of the lanes" in caplog.text:
            busy.append(2 - int(ray.available_resources().get("CPU", 0)))

    with caplog.at_level(logging.INFO):
        sweep(struck, prepared(struck), shares, poll=lose_a_node_and_bring_another)
    run = RunFolder.at(struck.storage, "struck")
    assert max(busy) == 2, "both nodes train again"
    assert {entry["state"] for entry in run.read_json("trials.json")} == {"finished"}
    assert curves_of(run) == curves_of(RunFolder.at(clean.storage, "clean"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num_workers", [1, 2])
def test_trials_with_workers_of_their_own_do_without_a_node_that_stays_away(
    cluster: Cluster, tmp_path: Path, num_workers: int
) -> None:
    while len(cluster.worker_nodes) < 2 * num_workers:
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    space = {"optim.learning_rate": {"grid": [0.01, 0.03, 0.05]}}
    settings = {"resources.num_workers": num_workers, "sweep": {"space": space, "isolation": "process"}}
    spec = tiny_spec(tmp_path, {"train.epochs": 20, **settings}, name="struck")
    lost: list[str] = []

    def lose_a_node(record: SweepRecord) -> None:
        if not lost and len({row["lane"] for row in record.rows}) == 2 and not ray.available_resources().get("CPU"):
            node = next(iter(cluster.worker_nodes))
            lost.append(node.node_id)
            cluster.remove_node(node, allow_graceful=False)

    shares = dict.fromkeys(["a", "b", "c", "d", "e", "head"], 1 / 6)
    sweep(spec, prepared(spec), shares, poll=lose_a_node)
    run = RunFolder.at(spec.storage, "struck")
    assert lost
    assert [(entry["state"], entry["epochs"]) for entry in run.read_json("trials.json")] == [("finished", 20)] * 3


def curves_of(run: RunFolder) -> dict[tuple[str, int], tuple[float, float]]:
    return {(row["lane"], row["epoch"]): (row["train_loss"], row["val_loss"]) for row in run.metrics()}
