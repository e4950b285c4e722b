"""Leases: one attempt at a time writes into a run folder, on a local disk and on S3, whatever happens to the others."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_spec

import tltrain.run as far_side
from tltrain import lease
from tltrain.errors import ResourceError, RunError, StorageError
from tltrain.lease import LEASE_FILE, begin_workers, hold, join, read_lease
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, load_spec
from tltrain.storage import Folder
from tltrain.train.checkpoint import Checkpoints


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    uri = str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3_uri")
    return Folder.open(uri).child("flowers")


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and expiry within a test's patience."""
    for name, seconds in {"RENEW_S": 0.05, "EXPIRY_S": 1.0, "SETTLE_S": 0.02}.items():
        monkeypatch.setattr(lease, name, seconds)


def rewrite(folder: Folder, **fields: Any) -> None:
    """Change the lease as another holder's program would."""
    known = json.loads(folder.read_bytes(LEASE_FILE)) if folder.exists(LEASE_FILE) else {}
    folder.write_bytes(LEASE_FILE, json.dumps({**known, **fields}).encode())


def elsewhere(folder: Folder, age_s: float) -> None:
    """A lease of a process on another machine, heard of `age_s` seconds ago."""
    heartbeat = time.time() - age_s
    rewrite(folder, owner="other", attempt=4, host="far", pid=os.getpid(), process="pid:[1] 2", heartbeat_at=heartbeat)


@contextlib.contextmanager
def taken_over(folder: Folder) -> Iterator[Folder]:
    """A folder whose lease another attempt has taken over meanwhile."""
    with hold(folder) as held:
        rewrite(folder, owner="other", attempt=2)
        yield held


def test_a_held_folder_is_refused_with_who_holds_it(folder: Folder) -> None:
    with hold(folder), pytest.raises(ResourceError, match=rf"attempt 1 \(process {os.getpid()} on "), hold(folder):
        pass


def test_each_holder_is_one_attempt_more_and_leaves_the_folder_to_the_next(folder: Folder) -> None:
    for attempt in (1, 2, 3):
        with hold(folder) as held:
            held.write_bytes("file", b"1")
            assert read_lease(folder).attempt == attempt  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("end", [{"owner": "other"}, {"released": True}], ids=["taken over", "released"])
def test_after_its_lease_an_attempt_changes_nothing_in_the_folder_or_below(folder: Folder, end: dict[str, Any]) -> None:
    run = RunFolder(folder)
    run.update(state="running")
    run.record_metrics([{"lane": "a", "step": 1}])
    before = folder.read_bytes("run.json"), folder.names()
    with hold(folder) as held:
        rewrite(folder, **end)
        old = RunFolder(held)
        acts = [
            lambda: old.update(state="finished"),
            lambda: old.record_metrics([{"lane": "a", "step": 2}]),
            lambda: old.model.write_bytes("model.json", b"{}"),
            lambda: Checkpoints(old.checkpoints, keep=1).save(5, {}, {}, background=False),
            lambda: old.folder.delete("run.json"),
            lambda: old.folder.rename("run.json", "x"),
            lambda: old.folder.child("deep", "er").write_file("file", __file__),
        ]
        for act in acts:
            with pytest.raises(RunError, match="another attempt has taken over"):
                act()
    assert (folder.read_bytes("run.json"), folder.names()) == (before[0], sorted([*before[1], LEASE_FILE]))


def replace_a_file(held: Folder) -> None:
    held.write_bytes("run.json", b"new")


def write_into_a_new_folder(held: Folder) -> None:
    held.child("5").write_bytes("COMMIT", b"new")


def renew_the_lease(held: Folder) -> None:
    begin_workers(held, "0")


def copy_into_a_new_folder(held: Folder) -> None:
    held.child("5").write_file("COMMIT", __file__)


@pytest.mark.parametrize(
    ("act", "place"),
    [
        *((act, place) for act in (replace_a_file, renew_the_lease) for place in ("open", "fsync", "replace")),
        *((write_into_a_new_folder, place) for place in ("mkdir", "open", "fsync", "replace")),
        (copy_into_a_new_folder, "fsync"),
    ],
)
def test_an_attempt_that_is_put_out_in_the_middle_of_a_write_changes_nothing(
    local: Folder, act: Callable[[Folder], None], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still just before that call, while another begins as `hold` does."""
    local.write_bytes("run.json", b"old")
    call = getattr(os, place)

    def stand_still(*arguments: Any) -> Any:
        monkeypatch.undo()
        rewrite(local, owner="other", attempt=2)
        lease._clear_litter(local)
        return call(*arguments)

    with hold(local) as held:
        monkeypatch.setattr(os, place, stand_still)
        with pytest.raises(RunError, match="another attempt has taken over"):
            act(held)
    assert sorted(os.listdir(local.uri)) == [LEASE_FILE, "run.json"]
    assert local.read_bytes("run.json") == b"old"
    assert read_lease(local).owner == "other"  # pyright: ignore[reportOptionalMemberAccess]


def test_an_attempt_does_not_bring_a_deleted_run_back(folder: Folder) -> None:
    with hold(folder) as held:
        folder.delete(LEASE_FILE)
        with pytest.raises(RunError, match="deleted"):
            RunFolder(held).update(state="finished")
    assert folder.names() == []


def test_workers_that_were_started_again_stop_those_before_and_no_others(folder: Folder) -> None:
    with hold(folder) as held:
        old, beside = (join(folder, begin_workers(held, group)) for group in ("a", "b"))
        old.write_bytes("file", b"old")
        new = join(folder, begin_workers(held, "a"))
        new.write_bytes("file", b"new")
        beside.write_bytes("beside", b"1")
        with pytest.raises(RunError, match="another attempt has taken over"):
            old.write_bytes("file", b"old")
        held.write_bytes("driver", b"1")
    with pytest.raises(RunError):
        new.write_bytes("file", b"the driver has ended")
    assert folder.read_bytes("file") == b"new"


def test_where_nobody_holds_the_folder_workers_write_freely(local: Folder) -> None:
    assert begin_workers(local, "a") == {}
    join(local, {}).write_bytes("file", b"1")


def test_a_holder_renews_its_lease(folder: Folder, quick: None) -> None:
    with hold(folder):
        first = read_lease(folder)
        deadline = time.monotonic() + 10
        while read_lease(folder) == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert read_lease(folder) != first


def test_a_holder_that_was_put_out_never_renews_again(local: Folder, quick: None) -> None:
    with taken_over(local):
        time.sleep(0.3)
        assert read_lease(local).owner == "other"  # pyright: ignore[reportOptionalMemberAccess]
    assert read_lease(local).owner == "other"  # pyright: ignore[reportOptionalMemberAccess]
    assert not read_lease(local).released  # pyright: ignore[reportOptionalMemberAccess]


def test_of_two_that_take_it_at_once_the_last_writer_holds_it(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease.time, "sleep", lambda _: elsewhere(local, 0))
    with pytest.raises(ResourceError, match=r"attempt 4 .* on far"), hold(local):
        pass
    assert read_lease(local).owner == "other"  # pyright: ignore[reportOptionalMemberAccess]


def test_a_process_of_this_machine_that_is_gone_leaves_its_lease_at_once(local: Folder) -> None:
    code = f"""
import os
from tltrain.lease import hold
from tltrain.storage import Folder
with hold(Folder.open({str(local)!r})):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert read_lease(local).is_near  # pyright: ignore[reportOptionalMemberAccess]
    began = time.monotonic()
    with hold(local):
        assert time.monotonic() - began < 5


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it(local: Folder) -> None:
    with hold(local):
        pass
    rewrite(local, released=False, process=f"{read_lease(local).process}0")  # pyright: ignore[reportOptionalMemberAccess]
    with hold(local):
        pass


def test_one_elsewhere_is_dead_when_it_is_silent_long_enough(local: Folder, quick: None) -> None:
    elsewhere(local, age_s=0)
    began = time.monotonic()
    with hold(local):
        assert time.monotonic() - began >= 0.9
        assert read_lease(local).attempt == 5  # pyright: ignore[reportOptionalMemberAccess]


def test_one_elsewhere_whose_clock_is_behind_is_alive_when_it_is_heard(
    local: Folder, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(local, age_s=3600)
    sleep, heartbeats = time.sleep, iter([3599])

    def beat_once(seconds: float) -> None:
        for age_s in heartbeats:
            elsewhere(local, age_s)
            return
        sleep(seconds)

    monkeypatch.setattr(lease.time, "sleep", beat_once)
    with pytest.raises(ResourceError, match="on far"), hold(local):
        pass


def test_a_storage_that_fails_for_a_moment_costs_no_lease(
    local: Folder, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the disk is away")

    with caplog.at_level(logging.WARNING), hold(local) as held:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write_bytes", fail)
            time.sleep(0.3)
        held.write_bytes("file", b"1")
    assert "the disk is away" in caplog.text
    assert read_lease(local).released  # pyright: ignore[reportOptionalMemberAccess]


def test_a_damaged_lease_is_named(local: Folder) -> None:
    local.write_bytes(LEASE_FILE, b'{"owner":')
    with pytest.raises(StorageError, match=r"lease\.json: the file is damaged"), hold(local):
        pass


def wait_until(condition: Any, *, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_of_two_processes_on_one_run_one_trains_and_one_that_wakes_up_late_writes_nothing(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path, {"train.epochs": 8, "checkpoint.every_steps": 1})
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_yaml(spec))
    run = RunFolder.at(spec.storage, spec.name)
    command = [sys.executable, "-m", "tltrain.run", str(path), "--local"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(run.metrics)
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(ResourceError, match=f"process {first.pid} on"):
            far_side.execute(load_spec(path), local=True)

        rewrite(run.folder, heartbeat_at=time.time() - 61)
        assert far_side.execute(load_spec(path), local=True) == 0
        assert read_lease(run.folder).attempt == 2  # pyright: ignore[reportOptionalMemberAccess]
        files = {name: run.folder.read_bytes(name) for name in ("run.json", "metrics.jsonl", LEASE_FILE)}
        checkpoints = run.checkpoints.names()

        first.send_signal(signal.SIGCONT)
        _, shown = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 1
    assert "another attempt has taken over" in shown
    assert {name: run.folder.read_bytes(name) for name in files} == files
    assert run.checkpoints.names() == checkpoints
    assert run.state()["state"] == "finished"
    assert [row["epoch"] for row in run.metrics()] == list(range(1, 9))


def test_halves_of_files_that_killed_processes_leave_are_deleted(local: Folder) -> None:
    """Those of an earlier attempt at the beginning, those of this attempt's workers at its end."""
    local.write_bytes(".file.01234567.tmp", b"half")
    path = local.local_path
    assert path is not None
    with hold(local):
        assert [file.name for file in path.glob(".*")] == []
        local.child("lanes").write_bytes(".file.01234567.tmp", b"half")
    assert list(path.rglob(".*")) == []
