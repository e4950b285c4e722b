"""A checkpoint is there whole or not at all, whatever happens while it is written or afterwards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tltrain.errors import CheckpointError, StorageError
from tltrain.storage import Folder
from tltrain.train.checkpoint import Checkpoint, Checkpoints

FILES = ("COMMIT", "info.json", "lane.json", "lane.safetensors", "manifest.json")


def lane(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((3, 2), float(step))}, "state": {0: {"step": torch.tensor(step)}}}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, {"lane": lane(step)}, {"epoch": step}, background=False)


def assert_whole(checkpoint: Checkpoint | None, *steps: int) -> None:
    """It is one of these steps, with exactly what was saved."""
    assert checkpoint is not None
    assert checkpoint.step in steps
    assert checkpoint.info == {"epoch": checkpoint.step}
    assert list(checkpoint.parts) == ["lane"]
    assert torch.equal(checkpoint.parts["lane"]["model"]["weight"], lane(checkpoint.step)["model"]["weight"])
    assert checkpoint.parts["lane"]["state"][0]["step"].item() == checkpoint.step


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    uri = str(tmp_path / "run") if request.param == "local" else request.getfixturevalue("s3_uri")
    return Folder.open(uri).child("checkpoints")


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "checkpoints"))


def test_the_newest_checkpoint_comes_back(folder: Folder) -> None:
    assert Checkpoints(folder, keep=2).newest() is None
    save(Checkpoints(folder, keep=2), 9, 10)
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.steps() == [9, 10]
    assert_whole(checkpoints.newest(), 10)
    assert_whole(checkpoints.load(9), 9)
    assert folder.child("10").names() == sorted(FILES)


def test_the_newest_and_the_protected_are_kept(folder: Folder) -> None:
    checkpoints = Checkpoints(folder, keep=2)
    save(checkpoints, 1, 2)
    checkpoints.protect(1)
    save(checkpoints, 3, 4, 5)
    assert folder.names() == ["1", "4", "5"]
    checkpoints.protect(4)
    save(checkpoints, 6, 7)
    assert folder.names() == ["4", "6", "7"]
    checkpoints.protect()
    save(checkpoints, 8)
    assert folder.names() == ["7", "8"]


def test_a_step_saved_again_replaces_the_old_one(folder: Folder) -> None:
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(3, {"other": [torch.zeros(1)]}, {}, background=False)
    save(checkpoints, 3)
    assert folder.child("3").names() == sorted(FILES)
    assert_whole(checkpoints.newest(), 3)


def test_equal_state_gives_equal_bytes(local: Folder) -> None:
    parts = {"b": {"x": torch.ones(2), "y": 1, 3: [2.5]}, "a": lane(1)}
    turned = {"a": lane(1), "b": {3: [2.5], "y": 1, "x": torch.ones(2)}}
    Checkpoints(local.child("first"), 1).save(5, parts, {"u": 1, "v": 2}, background=False)
    Checkpoints(local.child("second"), 1).save(5, turned, {"v": 2, "u": 1}, background=False)
    first, second = (
        {name: f.read_bytes(name) for name in f.names()}
        for f in (local.child("first", "5"), local.child("second", "5"))
    )
    assert first == second


def test_every_file_matches_its_checksum(local: Folder) -> None:
    save(Checkpoints(local, keep=1), 1)
    at = local.child("1")
    manifest = json.loads(at.read_bytes("manifest.json"))
    assert sorted([*manifest["files"], "manifest.json", "COMMIT"]) == sorted(FILES)
    for name, entry in manifest["files"].items():
        data = at.read_bytes(name)
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def test_infinite_numbers_in_info_come_back(local: Folder) -> None:
    Checkpoints(local, 1).save(1, {}, {"best": float("-inf"), "step": 0.1}, background=False)
    assert Checkpoints(local, 1).load(1).info == {"best": float("-inf"), "step": 0.1}


# Writing in the background


class SlowFolder(Folder):
    """Writes wait for `go`."""

    go: ClassVar[threading.Event]

    def write_bytes(self, name: str, data: bytes) -> None:
        assert self.go.wait(30)
        super().write_bytes(name, data)


@pytest.fixture
def slow(tmp_path: Path) -> SlowFolder:
    SlowFolder.go = threading.Event()
    return SlowFolder._local(str(tmp_path / "checkpoints"))  # type: ignore[return-value]


def test_training_may_go_on_while_a_checkpoint_is_written(slow: SlowFolder) -> None:
    checkpoints, state, info = Checkpoints(slow, keep=1), lane(1), {"epoch": 1}
    checkpoints.save(1, {"lane": state}, info)
    state["model"]["weight"].fill_(-1)
    state["state"][0]["step"].add_(1)
    info["epoch"] = 2
    assert checkpoints.steps() == []
    slow.go.set()
    checkpoints.wait()
    assert_whole(checkpoints.newest(), 1)


def test_a_second_save_waits_for_the_first(slow: SlowFolder) -> None:
    checkpoints = Checkpoints(slow, keep=3)
    checkpoints.save(1, {"lane": lane(1)}, {"epoch": 1})
    second = threading.Thread(target=lambda: save(checkpoints, 2))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    slow.go.set()
    second.join(30)
    assert checkpoints.steps() == [1, 2]


class FailingFolder(Folder):
    """The write after `good` others leaves half a file and fails."""

    good: ClassVar[int] = 0

    def write_bytes(self, name: str, data: bytes) -> None:
        FailingFolder.good -= 1
        super().write_bytes(name, data if FailingFolder.good >= 0 else data[: len(data) // 2])
        if FailingFolder.good < 0:
            raise StorageError("the write failed")


def failing(folder: Folder, good: int) -> Folder:
    FailingFolder.good = good
    return FailingFolder.open(folder.uri)


def test_an_error_in_the_background_is_raised_once(local: Folder) -> None:
    checkpoints = Checkpoints(failing(local, good=2), keep=1)
    for raise_it in (checkpoints.wait, lambda: save(checkpoints, 2), checkpoints.newest):
        FailingFolder.good = 2
        checkpoints.save(1, {"lane": lane(1)}, {"epoch": 1})
        with pytest.raises(StorageError, match="the write failed"):
            raise_it()
        checkpoints.wait()


@pytest.mark.parametrize("good", range(len(FILES)))
def test_a_write_that_fails_leaves_the_checkpoint_before(folder: Folder, good: int) -> None:
    save(Checkpoints(folder, keep=1), 1)
    with pytest.raises(StorageError, match="the write failed"):
        save(Checkpoints(failing(folder, good), keep=1), 2)
    checkpoints = Checkpoints(folder, keep=1)
    assert_whole(checkpoints.newest(), 1)
    save(checkpoints, 3)
    assert [name for name in folder.names() if not name.endswith(".bad")] == ["3"]


def test_remains_of_a_failed_write_go_with_the_next(local: Folder) -> None:
    checkpoints = Checkpoints(failing(local, good=2), keep=2)
    with pytest.raises(StorageError):
        save(checkpoints, 1)
    FailingFolder.good = 1000
    save(checkpoints, 2)
    assert local.names() == ["2"]


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    checkpoints = Checkpoints(Folder.open(str(small_disk)), keep=1)
    save(checkpoints, 1)
    checkpoints.save(2, {"lane": torch.zeros(500_000)}, {})
    with pytest.raises(StorageError, match=r"2/lane\.safetensors: .*No space left.*Free some space"):
        checkpoints.wait()
    assert_whole(checkpoints.newest(), 1)
    save(checkpoints, 3)
    assert_whole(checkpoints.newest(), 3)


KILL_AT_EVERY_CALL = """
import itertools, os, signal, sys, threading
import torch
from tltrain.storage import Folder
from tltrain.train.checkpoint import Checkpoints
sys.path.insert(0, sys.argv[2])
from test_checkpoint import save

def kill_at(call):
    calls = itertools.count()
    def armed(function):
        def counted(*args, **keywords):
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **keywords)
        return counted
    for name in ("open", "mkdir", "fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, armed(getattr(os, name)))

for call in itertools.count():
    child = os.fork()
    if child == 0:
        folder = Folder.open(f"{sys.argv[1]}/{call}")
        save(Checkpoints(folder, keep=2), *map(int, sys.argv[4:]))
        kill_at(call)
        save(Checkpoints(folder, keep=1), int(sys.argv[3]))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def killed_at_every_call(folder: Path, step: int, *before: int) -> list[int]:
    """Save `step` after others, once for every call to the system that it makes, and die there; return their numbers.

    What is left is in a folder for each.
    """
    arguments = [str(folder), str(Path(__file__).parent), str(step), *map(str, before)]
    subprocess.run([sys.executable, "-c", KILL_AT_EVERY_CALL, *arguments], check=True)
    return sorted(map(int, os.listdir(folder)))


def test_sigkill_at_every_call_leaves_the_step_that_is_saved_again(tmp_path: Path) -> None:
    calls = killed_at_every_call(tmp_path, 2, 2)
    for call in calls:
        folder = Folder.open(str(tmp_path / str(call)))
        assert_whole(Checkpoints(folder, keep=1).load(2), 2)
        if call % 2:  # whoever goes on looks for the newest, or goes on from a step it knows
            assert_whole(Checkpoints(folder, keep=1).newest(), 2)
            assert folder.names() == ["2"]
        else:
            save(Checkpoints(folder, keep=2), 3)
            assert folder.names() == ["2", "3"]
            assert_whole(Checkpoints(folder, keep=1).load(2), 2)
    assert len(calls) > 5 * len(FILES)


def test_sigkill_at_every_call_of_the_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    calls = killed_at_every_call(tmp_path, 3, 1, 2)
    newest = []
    for call in calls:
        checkpoints = Checkpoints(Folder.open(str(tmp_path / str(call))), keep=1)
        checkpoint = checkpoints.newest()
        assert_whole(checkpoint, 2, 3)
        newest += [checkpoint.step] if checkpoint else []
        for step in checkpoints.steps():
            assert_whole(checkpoints.load(step), step)
        save(checkpoints, 4)
        assert os.listdir(tmp_path / str(call)) == ["4"]
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
    assert len(calls) > 5 * len(FILES)


class CutShort(Folder):
    """Renames as an object store does, and is cut short while it deletes the old folder."""

    num_left: ClassVar[int] = 0

    def rename(self, old: str, new: str) -> None:
        for name in self.child(old).names():
            self.child(new).write_bytes(name, self.child(old).read_bytes(name))
        for name in self.child(old).names()[CutShort.num_left :]:
            self.child(old).delete(name)
        raise StorageError("the store is gone")


@pytest.mark.parametrize("num_left", range(1, len(FILES) + 1))
def test_a_successor_that_is_deleted_in_part_does_not_replace_its_copy(local: Folder, num_left: int) -> None:
    save(Checkpoints(local, keep=1), 2)
    CutShort.num_left = num_left
    with pytest.raises(StorageError, match="the store is gone"):
        save(Checkpoints(CutShort.open(local.uri), keep=1), 2)
    assert_whole(Checkpoints(local, keep=1).load(2), 2)
    assert_whole(Checkpoints(local, keep=1).newest(), 2)
    assert local.names() == ["2"]


# What happens to files afterwards

Damage = Callable[[bytes], bytes | None]
DAMAGES: dict[str, Damage] = {
    "deleted": lambda data: None,
    "emptied": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "longer": lambda data: data + b"\n",
    "first byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 128]),
}


def damage(folder: Folder, name: str, how: Damage) -> None:
    changed = how(folder.read_bytes(name))
    folder.delete(name)
    if changed is not None:
        folder.write_bytes(name, changed)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_is_set_aside_and_the_one_before_taken(
    local: Folder, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_fall_back(local, name, how, caplog)


@pytest.mark.parametrize("how", ["deleted", "first byte"])
def test_a_damaged_newest_on_s3_is_set_aside_too(s3_uri: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    check_fall_back(Folder.open(s3_uri), "lane.safetensors", how, caplog)


def check_fall_back(folder: Folder, name: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    save(Checkpoints(folder, keep=2), 1, 2)
    damage(folder.child("2"), name, DAMAGES[how])
    checkpoints = Checkpoints(folder, keep=2)
    with pytest.raises(CheckpointError):
        checkpoints.load(2)
    assert_whole(checkpoints.newest(), 1)
    uncommitted = (name, how) == ("COMMIT", "deleted")
    assert folder.names() == (["1"] if uncommitted else ["1", "2.bad"])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert ("never completed" if uncommitted else name) in record.getMessage()
    caplog.clear()
    assert_whole(checkpoints.newest(), 1)
    assert not caplog.records


def test_no_flipped_bit_goes_unseen(local: Folder) -> None:
    save(Checkpoints(local, keep=1), 1)
    for name in FILES:
        good = local.child("1").read_bytes(name)
        path = Path(local.uri, "1", name)
        for position in range(len(good)):
            flipped = good[position] ^ (1 << position % 8)
            path.write_bytes(good[:position] + bytes([flipped]) + good[position + 1 :])
            with pytest.raises(CheckpointError, match="damaged"):
                Checkpoints(local, 1).load(1)
        path.write_bytes(good)
    assert_whole(Checkpoints(local, 1).load(1), 1)


def test_when_all_are_damaged_training_never_starts_anew_in_silence(folder: Folder) -> None:
    save(Checkpoints(folder, keep=2), 1, 2)
    for step in ("1", "2"):
        damage(folder.child(step), "lane.safetensors", lambda data: data[:-1])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"damaged: 1\.bad, 2\.bad\. Restore one .* or delete"):
            Checkpoints(folder, keep=2).newest()


def test_a_restored_copy_is_taken_again(local: Folder) -> None:
    save(Checkpoints(local, keep=1), 1)
    shutil.copytree(Path(local.uri, "1"), Path(local.uri, "copy"))
    damage(local.child("1"), "lane.json", DAMAGES["emptied"])
    with pytest.raises(CheckpointError):
        Checkpoints(local, keep=1).newest()
    local.rename("copy", "1")
    assert_whole(Checkpoints(local, keep=1).newest(), 1)


def test_only_remains_count_as_no_checkpoint(folder: Folder) -> None:
    folder.child("4").write_bytes("lane.json", b"{}")
    assert Checkpoints(folder, keep=1).newest() is None
    assert folder.names() == []


def test_remains_below_a_good_one_go_when_it_is_taken(folder: Folder) -> None:
    save(Checkpoints(folder, keep=1), 4)
    folder.child("2").write_bytes("lane.json", b"{}")
    assert_whole(Checkpoints(folder, keep=1).newest(), 4)
    assert folder.names() == ["4"]


def test_what_a_kill_kept_from_being_deleted_is_deleted_later(folder: Folder) -> None:
    save(Checkpoints(folder, keep=3), 1, 2, 3)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.protect(1)
    checkpoints.prune()
    assert checkpoints.steps() == [1, 3]


def test_other_files_are_left_alone(local: Folder) -> None:
    for name in ("notes.txt", "-1", "1e3", "٣"):
        local.write_bytes(name, b"")
    save(Checkpoints(local, keep=1), 1, 2)
    assert_whole(Checkpoints(local, keep=1).newest(), 2)
    assert local.names() == sorted(["2", "notes.txt", "-1", "1e3", "٣"])


def test_a_checkpoint_under_another_number_is_refused(local: Folder) -> None:
    save(Checkpoints(local, keep=1), 1)
    local.rename("1", "7")
    with pytest.raises(CheckpointError, match="written as step 1"):
        Checkpoints(local, keep=1).load(7)


def test_a_missing_step_is_answered_with_those_there(folder: Folder) -> None:
    save(Checkpoints(folder, keep=2), 1, 2)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3\. .*: 1, 2"):
        Checkpoints(folder, keep=2).load(3)


def test_a_newer_format_is_told_and_not_set_aside(local: Folder) -> None:
    save(Checkpoints(local, keep=1), 1)
    at = local.child("1")
    manifest = at.read_bytes("manifest.json").replace(b'"format": 1', b'"format": 2')
    at.write_bytes("manifest.json", manifest)
    at.write_bytes("COMMIT", f"{hashlib.sha256(manifest).hexdigest()}\n".encode())
    with pytest.raises(CheckpointError, match=r"format 2, .* Upgrade tltrain"):
        Checkpoints(local, keep=1).newest()
    assert local.names() == ["1"]


def test_a_storage_that_fails_is_no_damage(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Checkpoints(local, keep=1), 1)

    def fail(folder: Folder, name: str) -> bytes:
        raise StorageError("unreachable")

    monkeypatch.setattr(Folder, "read_bytes", fail)
    with pytest.raises(StorageError, match="unreachable"):
        Checkpoints(local, keep=1).newest()
    assert local.names() == ["1"]
