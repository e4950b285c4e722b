"""What is asked of the autoscaler of a cluster that grows, and that it is withdrawn again."""

from __future__ import annotations

import pytest

from tltrain.engine import cluster
from tltrain.engine.plan import Node, make_request
from tltrain.spec.schema import ResourcesSpec


@pytest.mark.parametrize("groups", [0, 2])
def test_what_was_asked_for_is_withdrawn_when_the_run_leaves_the_cluster(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have asked for something too: a run that has not asked withdraws nothing."""
    asked: list[int] = []
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: asked.append(len(bundles)))
    for name in ("init", "shutdown"):
        monkeypatch.setattr(cluster.ray, name, lambda **_: None)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    request = make_request(ResourcesSpec(num_workers=3), [Node("a", 4, 0)])
    with cluster.connected():
        if groups:
            cluster.ask_autoscaler(request, groups)
    assert asked == ([6, 0] if groups else [])
    with cluster.connected():
        pass
    assert asked == ([6, 0] if groups else [])
