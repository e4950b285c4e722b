"""What becomes of a sweep's worker groups after a loss, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tltrain.engine import groups
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


def make_groups(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> WorkerGroups:
    """The last group of a sweep, whose first start loses a node."""

    def run_workers(self: WorkerGroups, index: int, name: str) -> dict[str, Any]:
        notes.append("start")
        if notes.count("start") == 1:
            raise LostError("a node is gone", "")
        return {"ended": "well"}

    monkeypatch.setattr(WorkerGroups, "_run_workers", run_workers)
    monkeypatch.setattr(groups, "GROUP_FAILURES", (LostError,))
    monkeypatch.setattr(WorkerGroups, "_has_fewer_lanes", lambda *_: False)
    spec = SimpleNamespace(sweep=SimpleNamespace(isolation="lanes"), resources=ResourcesSpec())
    run: Any = None
    request: Any = None
    return WorkerGroups(spec, run, request, Told(notes), count=1, likely=())  # pyright: ignore[reportArgumentType]


def test_the_last_group_waits_for_room_before_it_starts_again(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not, its start takes another of the restarts, until none is left."""
    assert make_groups(notes, monkeypatch)._run_group(0) == {"ended": "well"}
    assert notes == ["start", "retry", "wait for room", "restart", "start"]
