"""Runs in a storage: the list is what the folders say, however old the index; compared side by side; removed."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sqlite3
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tltrain.disk import names_changed_at
from tltrain.errors import SpecError, StorageError
from tltrain.jobs import run_index
from tltrain.jobs.comparison import compare
from tltrain.jobs.run_index import index_path
from tltrain.jobs.runs import list_runs, remove_run
from tltrain.lease import hold
from tltrain.run_folder import RunFolder
from tltrain.spec.load import dump_yaml, parse_spec, replace
from tltrain.storage import Folder

SPEC = parse_spec("name: a\nmodel: {name: resnet18}\ndata: {train: x}\n", where="x", base=Path("/")).spec
DONE = {
    "started_at": 1000.0,
    "finished_at": 1060.0,
    "best": {"epoch": 2, "top1": 0.5},
    "evaluation": {"split": "test", "accuracy": 0.25},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of this test's own; files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(run_index, "SETTLED_S", -1)
    return tmp_path / "cache"


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3_uri"))


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "runs"))


def make_run(storage: Folder, name: str, **state: Any) -> RunFolder:
    run = RunFolder(storage.child(name))
    run.write_spec(dump_yaml(replace(SPEC, {"name": name})))
    run.update(name=name, **{"state": "finished", **DONE, **state})
    return run


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the name of every run that is read from now on."""
    seen: list[str] = []
    state = RunFolder.state

    def note(run: RunFolder) -> dict[str, Any]:
        seen.append(run.name)
        return state(run)

    monkeypatch.setattr(RunFolder, "state", note)
    return seen


def test_runs_are_listed_newest_first_with_what_their_folders_say(storage: Folder) -> None:
    make_run(storage, "old")
    make_run(storage, "new", started_at=2000.0, finished_at=2600.0, kind="sweep", evaluation={"split": "validation"})
    make_run(storage, "bad", started_at=500.0, finished_at=None, state="failed", error=["no space"], best=None)
    storage.child("images").write_bytes("a.jpg", b"no run")
    found = list_runs(storage)
    assert [(run.name, run.kind, run.state) for run in found] == [
        ("new", "sweep", "finished"),
        ("old", "run", "finished"),
        ("bad", "run", "failed"),
    ]
    assert [run.duration_s for run in found[:2]] == [600.0, 60.0]
    assert [run.val_top1 for run in found] == [0.5, 0.5, None]
    assert [run.test_accuracy for run in found] == [None, 0.25, 0.25]
    assert found[2].problem == "no space"


def test_the_newest_alone_are_the_first_of_all(storage: Folder) -> None:
    for number in range(5):
        make_run(storage, f"r{number}", started_at=1000.0 + number % 3)
    every = [run.name for run in list_runs(storage)]

    assert every == ["r2", "r1", "r4", "r0", "r3"]
    assert [run.name for run in list_runs(storage, newest=3)] == every[:3]
    assert [run.name for run in list_runs(storage, newest=9)] == every


def test_where_no_run_was_made_the_disk_is_asked_for_the_newest_alone(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        make_run(local, f"r{number:02}", started_at=1000.0 + number)
    local.child("not-yet").write_bytes("spec.yaml", b"")
    first, asked = list_runs(local, newest=2), []
    stamps = Folder.stamps

    def note(folder: Folder, file: str, names: Sequence[str] | None = None) -> dict[str, tuple[int, int] | None]:
        asked.append(names)
        return stamps(folder, file, names)

    monkeypatch.setattr(Folder, "stamps", note)
    assert list_runs(local, newest=2) == first
    assert asked == ([["not-yet", "r28", "r29"]] if names_changed_at(Path(local.uri)) else [None])


def test_a_run_that_starts_late_comes_to_the_front(local: Folder) -> None:
    soon = time.time() + 100
    for number in range(4):
        make_run(local, f"r{number}", started_at=soon + number)
    late = make_run(local, "late", started_at=None)
    for _ in range(2):
        assert [run.name for run in list_runs(local, newest=2)] == ["r3", "r2"]
    late.update(started_at=soon + 9)
    assert [run.name for run in list_runs(local, newest=2)] == ["late", "r3"]


def change(chance: random.Random, storage: Folder, number: int) -> str:
    """Make, remove or change a run in a way that a list has to show; return what was done."""
    what = chance.choice(["make", "prepare", "write", "write", "remove", "spoil", "take state"])
    names = storage.names()
    name = f"r{number}" if what in ("make", "prepare") or not names else chance.choice(names)
    run = RunFolder(storage.child(name))
    if what == "prepare":
        run.folder.write_bytes("spec.yaml", b"")
    elif what == "remove":
        storage.delete(name)
    elif what == "take state":
        run.folder.delete("run.json")
    elif what == "spoil":
        run.folder.write_bytes("run.json", b"{")
    else:
        begun = {"started_at": time.time() + chance.uniform(0, 9)} if chance.random() < 0.7 else {}
        with contextlib.suppress(StorageError):  # there is none, or a spoiled one
            begun |= {key: value for key, value in run.state().items() if key == "started_at"}
        run.write_json("run.json", {"format": 1, "state": f"state{number}", **begun})
    return f"{what} {name}"


def test_the_newest_are_the_same_whatever_the_index_knew(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_index, "SETTLED_S", 0.02)
    chance, done = random.Random(0), []
    for number in range(60):
        done.append(change(chance, local, number))
        time.sleep(0.03)
        found = list_runs(local, newest=3)
        with monkeypatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(Path(local.uri).parent / f"fresh-{number}"))
            assert found == list_runs(local)[:3], done


def test_a_winner_in_a_sweep_is_no_run_of_its_own(local: Folder) -> None:
    make_run(make_run(local, "sweep", kind="sweep").folder, "winner")
    assert [run.name for run in list_runs(local)] == ["sweep"]


def test_only_what_has_changed_is_read_again(storage: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        make_run(storage, name)
    assert len(list_runs(storage)) == 3
    seen = count_reads(monkeypatch)
    first = list_runs(storage)
    assert seen == []
    RunFolder(storage.child("b")).write_json("run.json", {"format": 1, "state": "interrupted", "started_at": 5000.0})
    storage.delete("c")
    make_run(storage, "d")
    seen.clear()
    found = {run.name: run.state for run in list_runs(storage)}
    assert found == {"b": "interrupted", "a": "finished", "d": "finished"}
    assert sorted(seen) == ["b", "d"]
    assert [run for run in first if run.name == "a"] == [run for run in list_runs(storage) if run.name == "a"]


def test_a_file_written_just_now_is_read_again(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a second write with the same time and size would never be seen."""
    monkeypatch.setattr(run_index, "SETTLED_S", 60)
    run = make_run(local, "a", state="running1")
    path = Path(run.uri, "run.json")
    before = path.stat()
    assert list_runs(local)[0].state == "running1"
    run.update(state="running2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list_runs(local)[0].state == "running2"


def test_a_storage_in_which_a_run_was_made_just_now_is_looked_through_again(
    local: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a second run that is made within the resolution of the disk's clock would never be seen."""
    monkeypatch.setattr(run_index, "SETTLED_S", 60)
    make_run(local, "a")
    before = Path(local.uri).stat()
    assert len(list_runs(local, newest=9)) == 1
    make_run(local, "b")
    os.utime(local.uri, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(list_runs(local, newest=9)) == 2


def test_a_name_that_is_no_text_hides_no_other(local: Folder) -> None:
    make_run(local, "a")
    for name in (b"\xff", b"\xfe"):
        os.mkdir(os.fsencode(local.uri) + b"/" + name)
    Path(os.fsdecode(os.fsencode(local.uri) + b"/\xff"), "run.json").write_text('{"format": 1}')
    for newest in (None, 5, 5):
        assert [run.name for run in list_runs(local, newest=newest)] == ["a"]


def test_rebuild_forgets_what_was_known(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(local, "a")
    list_runs(local)
    seen = count_reads(monkeypatch)
    list_runs(local, rebuild=True)
    assert seen == ["a"]


@pytest.mark.parametrize("harm", ["garbage", "other version", "torn"])
def test_a_spoiled_index_is_made_anew(
    local: Folder, harm: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(200):
        make_run(local, f"run-{number}")
    expected, path = list_runs(local), index_path(local)
    if harm == "garbage":
        path.write_bytes(b"this is no database, and long enough to be seen as such" * 100)
    elif harm == "torn":
        content = path.read_bytes()
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    else:
        connection = sqlite3.connect(path)
        connection.execute("DROP TABLE runs")
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
        connection.close()
    assert list_runs(local) == expected
    list_runs(local)
    seen = count_reads(monkeypatch)
    caplog.clear()
    assert list_runs(local) == expected
    assert seen == []
    assert caplog.text == ""


def test_where_no_index_can_be_kept_the_list_is_the_same(
    local: Folder, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(local, "a")
    cache.write_text("a file where the folder would be")
    assert [run.name for run in list_runs(local)] == ["a"]
    assert "cannot be used" in caplog.text


def test_the_index_is_this_users_and_its_name_tells_no_address(local: Folder) -> None:
    make_run(local, "a")
    list_runs(local)
    path = index_path(local)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "runs" not in path.name


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 9}', b"\xff"])
def test_a_damaged_run_is_listed_as_such_and_hides_no_other(local: Folder, content: bytes) -> None:
    make_run(local, "good")
    local.child("bad").write_bytes("run.json", content)
    found = {run.name: run for run in list_runs(local)}
    assert (found["good"].state, found["bad"].state) == ("finished", "damaged")
    assert found["bad"].problem


def test_odd_values_in_a_run_of_somebody_else_do_no_harm(local: Folder) -> None:
    make_run(local, "odd", started_at="today", best=[1], evaluation="good", error="text", state=7)
    assert list_runs(local)[0].state == "7"


def test_a_run_is_running_while_its_process_is_heard_of(storage: Folder) -> None:
    run = make_run(storage, "a", state="running", finished_at=None, started_at=time.time() - 30)
    assert list_runs(storage)[0].state == "lost"
    with hold(run.folder):
        (found,) = list_runs(storage)
    assert found.state == "running"
    assert found.duration_s == pytest.approx(30, abs=10)
    assert list_runs(storage)[0].state == "lost"


def test_a_comparison_shows_what_differs_and_the_numbers(local: Folder) -> None:
    runs = [make_run(local, name) for name in "abc"]
    runs[1].write_spec(dump_yaml(replace(SPEC, {"name": "b", "optim.learning_rate": 0.5})))
    runs[2].write_spec(dump_yaml(replace(SPEC, {"name": "c", "train.epochs": 9})))
    runs[2].update(best=None, evaluation=None)
    comparison = compare(runs)
    assert comparison.runs == ["a", "b", "c"]
    assert comparison.spec == {"optim.learning_rate": [0.01, 0.5, 0.01], "train.epochs": [5, 5, 9]}
    assert comparison.metrics["val top-1"] == [0.5, 0.5, None]
    assert comparison.metrics["accuracy"] == [0.25, 0.25, None]
    assert comparison.metrics["duration"] == [60.0, 60.0, 60.0]


def test_runs_of_the_same_name_are_told_apart_by_their_addresses(tmp_path: Path) -> None:
    runs = [make_run(Folder.open(str(tmp_path / place)), "a") for place in ("here", "there")]
    assert compare(runs).runs == [run.uri for run in runs]


def test_a_removed_run_is_gone_and_its_attempt_cannot_bring_it_back(storage: Folder) -> None:
    run = make_run(storage, "a")
    run.checkpoints.child("10").write_bytes("COMMIT", b"1")
    make_run(storage, "b")
    remove_run(run)
    assert storage.names() == ["b"]
    assert [found.name for found in list_runs(storage)] == ["b"]


def test_a_run_that_somebody_writes_is_not_removed(storage: Folder) -> None:
    run = make_run(storage, "a", state="running")
    with hold(run.folder), pytest.raises(SpecError, match=rf"process {os.getpid()} on {socket.gethostname()}"):
        remove_run(run)
    assert run.state()["state"] == "running"
    remove_run(run)
    assert not run.exists()


def test_a_deletion_that_was_cut_short_is_repeated(local: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(local, "a")
    run.model.write_bytes("model.json", b"{}")
    delete = Folder.delete

    def fail_late(folder: Folder, name: str) -> None:
        if name == "spec.yaml":
            raise KeyboardInterrupt
        delete(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", fail_late)
        with pytest.raises(KeyboardInterrupt):
            remove_run(run)
    assert run.folder.names() == ["run.json", "spec.yaml"]
    remove_run(RunFolder.open(run.uri))
    assert local.names() == []
