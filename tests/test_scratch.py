"""Folders for temporary files: gone with their process, or with the next one's where it was killed."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tltrain import scratch
from tltrain.scratch import delete_abandoned, folder_of_process, scratch_folder

PREFIX = "scratch-"
HOLD = f"""
import sys
from tltrain.scratch import scratch_folder
with scratch_folder({PREFIX!r}) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all temporary files of these tests are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that has such a folder, and the folder."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_goes_with_all_that_is_in_it(temporary: Path) -> None:
    with scratch_folder(PREFIX) as folder:
        Path(folder, "sub").mkdir()
        assert Path(folder).parent == temporary
    assert list(temporary.iterdir()) == []


def test_one_that_a_killed_process_left_goes_when_the_next_is_made_and_one_in_use_stays(temporary: Path) -> None:
    (temporary / f"{PREFIX}of-somebody-else").mkdir()
    with another_process() as (_, used):
        with another_process() as (process, left):
            (left / "session" / "logs").mkdir(parents=True)
            process.kill()
            process.wait()
        assert left.exists()
        with scratch_folder(PREFIX) as mine:
            assert {path.name for path in temporary.iterdir()} == {
                f"{PREFIX}of-somebody-else",
                used.name,
                Path(mine).name,
            }


def make_for_this_process() -> str:
    return folder_of_process(PREFIX)


def make_for_a_block() -> str:
    with scratch_folder(PREFIX) as folder:
        assert Path(folder).is_dir()
    return folder


@pytest.mark.parametrize("make", [make_for_this_process, make_for_a_block])
@pytest.mark.parametrize("is_made", [True, False], ids=["before it is locked", "before it has a lock"])
def test_one_that_another_process_deletes_meanwhile_is_made_anew(
    make: Callable[[], str], is_made: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: list[Path] = []
    lock, open_now = fcntl.flock, os.open

    def meddle() -> None:
        if not meant:
            meant.extend(temporary.iterdir())
            monkeypatch.setattr(scratch, "_UNHELD_S", -1.0)
            delete_abandoned(PREFIX)

    def late_lock(descriptor: int, how: int) -> None:
        if is_made and how == fcntl.LOCK_EX:
            meddle()
        lock(descriptor, how)

    def late_open(path: Path, flags: int, *mode: int, **at: Any) -> int:
        if not is_made and flags & os.O_CREAT:
            meddle()
        return open_now(path, flags, *mode, **at)

    monkeypatch.setattr(fcntl, "flock", late_lock)
    monkeypatch.setattr(scratch.os, "open", late_open)
    made = make()
    assert len(meant) == 1
    assert not meant[0].exists()
    assert Path(made) != meant[0]


def test_what_a_killed_process_left_goes_also_where_no_other_is_made(temporary: Path) -> None:
    with another_process() as (_, used), another_process() as (process, left):
        process.kill()
        process.wait()
        delete_abandoned(PREFIX)
        assert (used.exists(), left.exists()) == (True, False)


def test_empty_folders_that_a_late_process_made_anew_go_and_those_that_are_just_made_or_hold_a_file_stay(
    temporary: Path,
) -> None:
    for name in ("anew", "with-a-file"):
        (temporary / f"{PREFIX}{name}" / "ray" / "logs").mkdir(parents=True)
    (temporary / f"{PREFIX}anew" / "ray" / "latest").symlink_to(temporary)
    (temporary / f"{PREFIX}with-a-file" / "ray" / "log.txt").touch()
    for name in ("just-made", "never-used"):
        (temporary / f"{PREFIX}{name}").mkdir()
    for name in ("with-a-file", "never-used"):
        os.utime(temporary / f"{PREFIX}{name}", (0, 0))
    with scratch_folder(PREFIX):
        pass
    assert {path.name for path in temporary.iterdir()} == {f"{PREFIX}just-made", f"{PREFIX}with-a-file"}


@pytest.mark.parametrize(("socket", "is_moved"), [("s" * 20, False), ("s" * 100, True), ("", False)])
def test_where_paths_of_sockets_would_be_too_long_it_is_in_a_shorter_place_and_that_is_said(
    temporary: Path, socket: str, is_moved: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = temporary / "short"
    short.mkdir()
    monkeypatch.setattr(scratch, "_SHORT", str(short))
    monkeypatch.setattr(scratch, "_SOCKET_PATH", len(str(temporary)) + 60)
    with caplog.at_level(logging.INFO), scratch_folder(PREFIX, sockets=socket) as folder:
        assert Path(folder).parent == (short if is_moved else temporary)
    assert is_moved == (f"{temporary} is too long" in caplog.text)
