"""What becomes of a sweep's worker groups after a loss, without Ray."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tltrain.engine import cluster, groups
from tltrain.engine.groups import WorkerGroups
from tltrain.engine.plan import Request
from tltrain.errors import LostError
from tltrain.run_folder import RunFolder
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
    kill = {"kill": lambda process: happened.append(f"kill {process}")}
    monkeypatch.setattr(groups, "ray", SimpleNamespace(get=lambda value: value, nodes=lambda: nodes, **kill))
    monkeypatch.setattr(groups, "retry_or_raise", lambda *_: happened.append("retry"))
    monkeypatch.setattr(groups, "take_waits", lambda *_: [])
    monkeypatch.setattr(groups, "wait_for_room_again", lambda *_: happened.append("wait for room"))
    monkeypatch.setattr(groups, "ask_autoscaler", lambda _, groups: happened.append(f"ask for {groups}"))
    monkeypatch.setattr(groups, "SETTLE_S", 0)
    monkeypatch.setattr(groups, "LOOK_S", 0.02)
    monkeypatch.setattr(groups, "live_nodes", lambda: [None])
    return happened


def make_groups(
    notes: list[str], monkeypatch: pytest.MonkeyPatch, count: int = 1, *, wait_s: float = 1e6
) -> WorkerGroups:
    """The groups of a sweep; the first start of one loses a node."""

    def run_workers(self: WorkerGroups, index: int, name: str) -> dict[str, Any]:
        notes.append("start")
        if notes.count("start") == 1:
            raise LostError("a node is gone", "")
        return {"ended": "well"}

    monkeypatch.setattr(WorkerGroups, "_run_workers", run_workers)
    spec = SimpleNamespace(sweep=SimpleNamespace(isolation="lanes"), resources=ResourcesSpec(wait_s=wait_s))
    return of_spec(spec, SimpleNamespace(folder=None, update=lambda **_: None), Told(notes), count, monkeypatch)


def of_spec(
    spec: Any, run: Any, broker: Any, count: int, monkeypatch: pytest.MonkeyPatch, started: tuple[Any, ...] = ()
) -> WorkerGroups:
    """Groups of one worker, which end by a LostError where they are lost."""
    monkeypatch.setattr(groups, "GROUP_FAILURES", (LostError,))
    monkeypatch.setattr(WorkerGroups, "_has_fewer_lanes", lambda *_: False)
    request = Request(1, 1, 1, 0, "pack")
    return WorkerGroups(spec, run, request, broker, count=count, likely=(), started=started)


def test_the_last_group_waits_for_room_before_it_starts_again(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not, its start takes another of the restarts, until none is left."""
    group = make_groups(notes, monkeypatch)
    assert group._run_group(0) == {"ended": "well"}
    assert group.has_failed
    assert notes == ["start", "retry", "wait for room", "start"]


@pytest.mark.parametrize("count", [1, 2], ids=["the last group", "one of two"])
def test_a_sweep_that_ends_waits_for_no_node(notes: list[str], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As after SIGTERM, when no node is there any more and `resources.wait_s` gives one days."""
    monkeypatch.setattr(groups, "wait_for_room_again", cluster.wait_for_room_again)
    monkeypatch.setattr(cluster, "live_nodes", list)
    monkeypatch.setattr(cluster, "ask_autoscaler", lambda _: None)
    monkeypatch.setattr(groups, "live_nodes", list)
    several = make_groups(notes, monkeypatch, count)

    with several.running():
        while notes.count("retry") == 0:
            time.sleep(0.01)

    several.look()  # and it has come here: else it would wait for days


@pytest.mark.parametrize("comes_back", [True, False], ids=["a node comes", "the sweep ends"])
def test_a_group_that_is_one_too_many_comes_back_with_a_node(
    comes_back: bool, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = make_groups(notes, monkeypatch, 2, wait_s=0)
    rooms = [1, 1, 2] if comes_back else [1]
    monkeypatch.setattr(groups, "capacity", lambda *_: rooms.pop(0) if len(rooms) > 1 else rooms[0])
    monkeypatch.setattr(two, "_broker", Told(notes))
    if not comes_back:
        two._ended.set()
    two._run_group(1)
    end = ["ask for 2", "wait for room", "start"] if comes_back else []
    assert notes == ["start", "retry", "retire", *end]
    assert two._active == (2 if comes_back else 1)


def test_where_the_broker_is_lost_no_process_stays_that_was_started_early(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its CPU, and a group of the sweep that begins again would wait for that without end."""

    def lost(*_: Any) -> None:
        raise LostError("the broker is gone", "")

    monkeypatch.setattr(WorkerGroups, "_run_group", lost)
    broker = SimpleNamespace(**dict.fromkeys(("halt", "close"), SimpleNamespace(remote=lost)))
    spec = SimpleNamespace(sweep=SimpleNamespace(isolation="lanes"), resources=ResourcesSpec())
    two = of_spec(spec, SimpleNamespace(folder=None), broker, 2, monkeypatch, started=("a", "b", "c"))
    with pytest.raises(LostError), two.running():
        pass
    assert sorted(note for note in notes if note.startswith("kill")) == ["kill a", "kill b", "kill c"]


def trials(*groups_of_trials: int) -> SimpleNamespace:
    """The broker of a sweep whose trials have workers of their own: it hands out these groups, and ends."""
    left = [*groups_of_trials, None, None]
    answers = {"claim": lambda: left.pop(0)} | dict.fromkeys(("halt", "close"), lambda *_: None)
    return SimpleNamespace(**{name: SimpleNamespace(remote=answer) for name, answer in answers.items()})


@pytest.mark.parametrize(
    ("held", "later"), [(1, 1), (1, 2), (2, 2)], ids=["the node stays away", "it comes back", "another node has room"]
)
def test_where_a_node_stays_away_trials_with_workers_of_their_own_wait_for_each_other(
    held: int, later: int, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what does not fit would start again and again, until no restart is left."""
    both_start, may_end = threading.Barrier(2), threading.Event()

    def run_workers(self: WorkerGroups, index: int, name: str) -> dict[str, Any]:
        notes.append(f"start {index}")
        if notes.count(f"start {index}") == 1:
            both_start.wait()
            if index == 1:
                raise LostError("a node is gone", "")
            may_end.wait()
        notes.append(f"end {index}")
        return {}

    monkeypatch.setattr(WorkerGroups, "_run_workers", run_workers)
    room = [held]
    monkeypatch.setattr(groups, "capacity", lambda *_: room[0])
    monkeypatch.setattr(groups, "merged", list)
    spec = SimpleNamespace(sweep=SimpleNamespace(isolation="process"), resources=ResourcesSpec(wait_s=0))
    several = of_spec(spec, RunFolder.at(str(tmp_path), "sweep"), trials(1, 2), 2, monkeypatch)
    with several.running():
        while ("retry" if held == 1 else "end 1") not in notes:
            time.sleep(0.01)
        time.sleep(0.1)  # in which another start would show
        starts = notes.count("start 1")
        room[0] = later
        while later == 2 and "end 1" not in notes:
            time.sleep(0.01)
        may_end.set()
        while not {"end 1", "end 2"} <= set(notes):
            time.sleep(0.01)
    assert starts == held
    assert [note for note in notes if note.startswith(("start 1", "end"))] == (
        ["start 1", "end 2", "start 1", "end 1"] if later == 1 else ["start 1", "start 1", "end 1", "end 2"]
    )
