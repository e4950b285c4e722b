"""What becomes of a sweep's worker groups after a loss, without Ray."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tltrain.engine import cluster, groups
from tltrain.engine.groups import WorkerGroups
from tltrain.errors import LostError
from tltrain.spec.schema import ResourcesSpec


class Told:
    """An actor that is told things, and notes them."""

    def __init__(self, notes: list[str]) -> None:
        self._notes = notes

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: self._notes.append(name))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order."""
    happened: list[str] = []
    nodes = [{}, {}]
    monkeypatch.setattr(groups, "ray", SimpleNamespace(get=lambda value: value, nodes=lambda: nodes))
    monkeypatch.setattr(groups, "retry_or_raise", lambda *_: happened.append("retry"))
    monkeypatch.setattr(groups, "wait_for_room_again", lambda *_: happened.append("wait for room"))
    return happened


def make_groups(notes: list[str], monkeypatch: pytest.MonkeyPatch, count: int = 1) -> WorkerGroups:
    """The groups of a sweep; the first start of one loses a node."""

    def run_workers(self: WorkerGroups, index: int, name: str) -> dict[str, Any]:
        notes.append("start")
        if notes.count("start") == 1:
            raise LostError("a node is gone", "")
        return {"ended": "well"}

    monkeypatch.setattr(WorkerGroups, "_run_workers", run_workers)
    monkeypatch.setattr(groups, "GROUP_FAILURES", (LostError,))
    monkeypatch.setattr(WorkerGroups, "_has_fewer_lanes", lambda *_: False)
    spec = SimpleNamespace(sweep=SimpleNamespace(isolation="lanes"), resources=ResourcesSpec(wait_s=1e6))
    run: Any = None
    request: Any = SimpleNamespace(min_workers=1)
    return WorkerGroups(spec, run, request, Told(notes), count=count, likely=())  # pyright: ignore[reportArgumentType]


def test_the_last_group_waits_for_room_before_it_starts_again(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not, its start takes another of the restarts, until none is left."""
    assert make_groups(notes, monkeypatch)._run_group(0) == {"ended": "well"}
    assert notes == ["start", "retry", "wait for room", "restart", "start"]


@pytest.mark.parametrize("count", [1, 2], ids=["the last group", "one of two"])
def test_a_sweep_that_ends_waits_for_no_node(notes: list[str], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As after SIGTERM, when no node is there any more and `resources.wait_s` gives one days."""
    monkeypatch.setattr(groups, "wait_for_room_again", cluster.wait_for_room_again)
    monkeypatch.setattr(cluster, "live_nodes", list)
    monkeypatch.setattr(cluster, "_ask_autoscaler", lambda _: None)
    monkeypatch.setattr(groups, "live_nodes", list)
    several = make_groups(notes, monkeypatch, count)

    with several.running():
        while notes.count("retry") == 0:
            time.sleep(0.01)

    several.raise_errors()  # and it has come here: else it would wait for days
