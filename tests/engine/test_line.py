"""A cluster whose CPU cores others use: runs wait for them with a reason and a limit, sweeps do with what is free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from test_fit import prepared
from tiny import tiny_spec

from tltrain.engine import batch_size, fit, groups
from tltrain.engine.cluster import connected
from tltrain.engine.plan import Request
from tltrain.engine.sweep import sweep
from tltrain.engine.sweep_record import SweepRecord
from tltrain.errors import ResourceError

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]

NEEDED = "worker(s) of 1 CPU, which others use"
SHARES = dict.fromkeys(["a", "b", "c", "d", "e", "head"], 1 / 6)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One private cluster for all tests here, on which Ray Train waits two seconds for room in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
        with connected():
            yield


@contextlib.contextmanager
def used(cores: int) -> Iterator[Any]:
    """Have another program hold so many CPU cores, for a `with` block or until it is killed."""

    class Holder:
        def alive(self) -> bool:
            return True

    holder: Any = ray.remote(num_cpus=cores)(Holder).remote()
    assert ray.get(holder.alive.remote())
    try:
        yield holder
    finally:
        ray.kill(holder)


def all_cores() -> int:
    return int(ray.cluster_resources()["CPU"])


class WorkerGroupStartupTimeoutError(Exception):
    """Looks like Ray Train's."""


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that holds one worker, and that nobody asks."""
    request = Request(1, 1, 1, 0, "pack")
    monkeypatch.setattr(fit, "connected", contextlib.nullcontext)
    monkeypatch.setattr(fit, "GROUP_FAILURES", (WorkerGroupStartupTimeoutError,))
    monkeypatch.setattr(fit, "preflight", lambda *_: request)
    for name in ("wait_for_room", "wait_for_room_again"):
        monkeypatch.setattr(fit, name, lambda *_: request)


def test_a_start_without_room_is_no_restart(no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(tmp_path, {"resources.max_failures": 0})
    run, waits = prepared(spec), list[Any]()

    def attempt(*_: Any) -> dict[str, Any]:
        waits.append(run.state().get("waiting"))
        if len(waits) < 4:
            raise WorkerGroupStartupTimeoutError
        return {"done": True}

    monkeypatch.setattr(fit, "_attempt", attempt)
    assert fit.fit(spec, run, poll=lambda: None) == {"done": True}
    assert [each and each["for"] for each in waits] == [None] + 3 * [f"room for 1 {NEEDED}"]
    assert run.state()["attempts"] == 1


def test_room_is_waited_for_no_longer_than_the_spec_says(
    no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tmp_path, {"resources.queue_timeout_s": 0.01})
    run = prepared(spec)

    def attempt(*_: Any) -> None:
        time.sleep(0.02)
        raise WorkerGroupStartupTimeoutError

    monkeypatch.setattr(fit, "_attempt", attempt)
    with pytest.raises(ResourceError, match=r"others have used what 1 worker\(s\) of 1 CPU need") as caught:
        fit.fit(spec, run, poll=lambda: None)
    assert caught.value.problems[0].key == "resources.queue_timeout_s"
    assert run.state()["waiting"] is None


@pytest.mark.slow
def test_a_run_waits_for_room_that_others_use_and_says_so(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    build = fit.build_trainer
    monkeypatch.setattr(fit, "ROOM_AT_ONCE_S", 0.5)
    monkeypatch.setattr(fit, "build_trainer", lambda *args, **options: tries.append("") or build(*args, **options))
    spec = tiny_spec(tmp_path, {"resources.max_failures": 0})
    run, told = prepared(spec), list[str]()

    with used(all_cores()) as holder:

        def look() -> None:
            waiting = run.state().get("waiting")
            if waiting and len(tries) == 1:
                told.append(waiting["for"])
            if len(tries) == 3:  # what Ray Train calls a failed start costs none of the restarts
                ray.kill(holder)

        summary = fit.fit(spec, run, poll=look)
    assert set(told) == {f"room for 1 {NEEDED}"}
    assert len(tries) >= 3
    assert summary["evaluation"]["num_images"] == 45
    assert (run.state()["attempts"], run.state()["waiting"]) == (1, None)


@pytest.mark.slow
def test_a_run_that_has_waited_too_long_for_others_ends_with_the_reason(cluster: None, tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"resources.queue_timeout_s": 0.1})
    run = prepared(spec)
    with used(all_cores()), pytest.raises(ResourceError, match=r"others have used what 1 worker\(s\) of 1 CPU need"):
        fit.fit(spec, run, poll=lambda: None)
    assert run.state()["waiting"] is None


def test_a_sweep_does_with_what_is_free_and_its_end_waits_for_nobody(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has as many groups as the cluster holds; what others keep to its end costs it the room and no lane."""
    monkeypatch.setattr(groups, "ROOM_WITHIN_S", 2.0)
    space = {"optim.learning_rate": {"grid": [0.01, 0.03, 0.05]}}
    spec = tiny_spec(tmp_path, {"sweep": {"space": space}, "resources.max_failures": 0})
    run, waits = prepared(spec), list[Any]()
    with used(all_cores() - 1), used(1) as last:

        def look(record: SweepRecord) -> None:
            waits.append(run.state().get("waiting"))
            if waits[-1]:
                ray.kill(last)

        sweep(spec, run, SHARES, poll=look)
    assert {entry["state"] for entry in run.read_json("trials.json")} == {"finished"}
    assert {each["for"] for each in waits if each} == {f"room for 1 {NEEDED}"}
    assert run.state()["waiting"] is None


def test_a_sweep_that_has_waited_too_long_for_others_ends_with_the_reason(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "ROOM_WITHIN_S", 1.0)
    space = {"optim.learning_rate": {"grid": [0.01, 0.03]}}
    changes = {"sweep": {"space": space}, "resources.queue_timeout_s": 0.1}
    spec = tiny_spec(tmp_path, changes)
    with used(all_cores()), pytest.raises(ResourceError, match="others have used what"):
        sweep(spec, prepared(spec), SHARES, poll=lambda _: None)


def test_batch_sizes_are_tried_only_where_there_is_room(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "ROOM_WITHIN_S", 0.1)
    spec = tiny_spec(tmp_path, {"train.batch_size": "auto", "resources.queue_timeout_s": 0.1})
    with used(all_cores()), pytest.raises(ResourceError, match="others have used what"):
        batch_size.find_on_worker(spec)
