"""Files of the local disk: whole or absent, and private where they have to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from tltrain import disk
from tltrain.disk import TEMPORARY, delete_unfinished, make_folder, names_changed_at, replacing, stamps


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in (b"first", b"second"):
        before = path.read_bytes() if path.exists() else None
        with replacing(path) as file:
            file.write(text)
            file.flush()
            (written,) = [name for name in os.listdir(path.parent) if name != "file"]
            assert TEMPORARY.fullmatch(written)
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == text
        assert os.listdir(path.parent) == ["file"]


def write_half_and_fail(file: BinaryIO) -> None:
    file.write(b"half")
    raise RuntimeError


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), replacing(path) as file:
        write_half_and_fail(file)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def refuse() -> NoReturn:
    raise RuntimeError("not any more")


@pytest.mark.parametrize("folder", ["", "new"])
def test_a_write_that_is_refused_at_its_end_leaves_nothing(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError, match="not any more"), replacing(tmp_path / folder / "file", check=refuse) as file:
        file.write(b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_what_a_killed_process_was_writing_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (".file.01234567.tmp", "deep/.file.01234567.tmp", "file.tmp", ".hidden"):
        (tmp_path / name).write_bytes(b"half")
    delete_unfinished(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == [".hidden", "deep", "file.tmp"]


def test_private_files_and_folders_are_so_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    old = os.umask(0)
    try:
        with replacing(path, private=True) as file:
            assert mode_of(path.parent / os.listdir(path.parent)[0]) == 0o600
            file.write(b"secret")
        make_folder(tmp_path / "public" / "sub")
    finally:
        os.umask(old)
    assert mode_of(path) == 0o600
    assert [mode_of(folder) for folder in (path.parent, path.parent.parent)] == [0o700, 0o700]
    assert mode_of(tmp_path / "public" / "sub") == 0o755


def test_relative_paths_are_taken_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing("file") as file:
        file.write(b"here")
    make_folder("a/b")
    assert (tmp_path / "file").read_bytes() == b"here"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("at_once_s", [1.0, 0.0], ids=["told at once", "on a slow disk"])
def test_stamps_are_those_of_files_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once_s: float
) -> None:
    monkeypatch.setattr(disk, "_AT_ONCE_S", at_once_s)
    for number in range(900):
        (tmp_path / f"run-{number}").mkdir()
    for number in range(0, 900, 3):
        (tmp_path / f"run-{number}" / "file").write_bytes(b"x" * number)
    (tmp_path / "run-1" / "file").mkdir()
    (tmp_path / "file").write_bytes(b"not in a folder")

    found = stamps(tmp_path, "file")

    sizes = {name: stamp and stamp[1] for name, stamp in found.items()}
    assert sizes == {f"run-{number}": None if number % 3 else number for number in range(900)} | {"file": None}
    assert found["run-3"] == ((tmp_path / "run-3" / "file").stat().st_mtime_ns, 3)
    assert stamps(tmp_path, "file", ["run-3", "run-4", "gone"]) == {
        "run-3": found["run-3"],
        "run-4": None,
        "gone": None,
    }
    assert stamps(tmp_path / "nowhere", "file") == {}


MOUNTS = "27 1 {} / /somewhere rw,relatime - {} /dev/vda rw\n22 27 0:999999 / /proc rw - proc proc rw\n"


@pytest.mark.parametrize(
    ("kind", "is_known"), [("ext4", True), ("nfs4", True), ("fuse.gcsfuse", False), ("fuse", False), ("unheard", False)]
)
def test_when_names_changed_is_said_of_file_systems_that_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_known: bool
) -> None:
    found = tmp_path.stat()
    mounts = MOUNTS.format(f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}", kind)
    monkeypatch.setattr(Path, "read_text", lambda path, **_: mounts if str(path) == "/proc/self/mountinfo" else "")

    assert names_changed_at(tmp_path) == ((found.st_mtime_ns, found.st_ino) if is_known else None)
    assert names_changed_at(tmp_path / "nowhere") is None
