"""Clusters that grow: what is asked of the autoscaler, and that it is let go of again."""

from __future__ import annotations

import subprocess
import sys

import pytest
from heads import running_head
from ray.exceptions import RayError

from tltrain.engine import cluster
from tltrain.engine.plan import Node, make_request
from tltrain.spec.schema import ResourcesSpec

GROWS_AND_SHRINKS = """
import time
from tltrain.engine.cluster import connected, live_nodes, wait_for_room
from tltrain.spec.schema import ResourcesSpec

with connected():
    wait_for_room(ResourcesSpec(num_workers=2, wait_s=120))
    print(sum(node.cpus for node in live_nodes()))
with connected():
    while any(node.cpus for node in live_nodes()):
        time.sleep(0.5)
"""


REQUEST = make_request(ResourcesSpec(num_workers=3), [Node("a", 4, 0)])


def join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `connected` join a cluster that is not there."""
    for name in ("init", "shutdown"):
        monkeypatch.setattr(cluster.ray, name, lambda **_: None)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")


@pytest.mark.parametrize("groups", [0, 2])
def test_what_was_asked_for_is_withdrawn_when_the_run_leaves_the_cluster(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have asked for something too: a run that has not asked withdraws nothing."""
    asked: list[int] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(len(bundles)))
    join(monkeypatch)
    with cluster.connected():
        if groups:
            cluster.ask_autoscaler(REQUEST, groups)
    assert asked == ([6, 0] if groups else [])
    with cluster.connected():
        pass
    assert asked == ([6, 0] if groups else [])


def test_a_head_that_is_gone_hides_no_error_of_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def request_resources(bundles: list[dict[str, float]]) -> None:
        if not bundles:
            raise RayError("nobody answers")

    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", request_resources)
    join(monkeypatch)

    def run() -> None:
        with cluster.connected():
            cluster.ask_autoscaler(REQUEST)
            raise KeyError("of the run")

    with pytest.raises(KeyError, match="of the run"):
        run()
    assert "still asked for: nobody answers" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_a_run_has_waited_for_can_go_when_it_has_ended() -> None:
    """Ray's own autoscaler: it would keep them for ever, for one who asks for them once."""
    with running_head(num_cpus=0, grows_by=2) as head:
        environment = head.environment | {"RAY_ADDRESS": head.address}
        told = subprocess.run(
            [sys.executable, "-c", GROWS_AND_SHRINKS], env=environment, capture_output=True, text=True, check=True
        )
    assert told.stdout.split() == ["2"]
