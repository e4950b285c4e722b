"""Folders: the same properties on a local disk and on S3, whole writes, and errors that say what to do."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tltrain.errors import StorageError
from tltrain.storage import Folder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    uri = str(tmp_path / "runs") if request.param == "local" else request.getfixturevalue("s3_uri")
    return Folder.open(uri)


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@pytest.mark.parametrize("data", [b"", b"x", os.urandom(300_000)], ids=["empty", "small", "large"])
def test_what_was_written_is_read(folder: Folder, data: bytes) -> None:
    folder.write_bytes("file", b"before, and longer than some of what replaces it")
    folder.write_bytes("file", data)
    assert folder.read_bytes("file") == data


@pytest.mark.parametrize("data", [b"", os.urandom(3_000_000)], ids=["empty", "large"])
def test_a_copied_file_is_the_local_one(folder: Folder, tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(data)
    folder.child("new").write_file("copy", source)
    assert folder.child("new").read_bytes("copy") == data


def test_names_are_the_direct_children(folder: Folder) -> None:
    assert folder.names() == []
    folder.write_bytes("b", b"1")
    folder.child("a", "deep").write_bytes("file", b"2")
    assert folder.names() == ["a", "b"]
    assert folder.child("a").names() == ["deep"]


def test_exists_knows_files_and_folders(folder: Folder) -> None:
    folder.child("a").write_bytes("b", b"1")
    assert [folder.exists(name) for name in ("a", "b", "c")] == [True, False, False]
    assert folder.child("a").exists("b")
    assert not folder.child("a", "b").exists("below-a-file")


def test_delete_takes_files_folders_and_nothing(folder: Folder) -> None:
    folder.write_bytes("file", b"1")
    folder.child("sub", "sub").write_bytes("file", b"2")
    for name in ("file", "sub", "missing"):
        folder.delete(name)
    assert folder.names() == []


def test_rename_moves_files_and_whole_folders(folder: Folder) -> None:
    folder.write_bytes("file", b"1")
    folder.child("sub", "deep").write_bytes("file", b"2")
    folder.rename("file", "file2")
    folder.rename("sub", "sub2")
    assert folder.names() == ["file2", "sub2"]
    assert folder.child("sub2", "deep").read_bytes("file") == b"2"


@pytest.mark.parametrize("name", ["plain", "with space", "per%20cent", "hash#mark", "question?mark", "ümlaut"])
def test_a_folder_is_found_again_by_its_address(folder: Folder, name: str) -> None:
    child = folder.child(name)
    child.write_bytes("file", b"1")
    again = Folder.open(child.uri)
    assert again == child
    assert again.name == name
    assert again.read_bytes("file") == b"1"
    assert folder.names() == [name]


def test_a_folder_travels_to_other_processes(folder: Folder) -> None:
    folder.write_bytes("file", b"1")
    assert pickle.loads(pickle.dumps(folder)).read_bytes("file") == b"1"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(folder: Folder, name: str) -> None:
    for act in (folder.child, folder.exists, folder.delete, folder.read_bytes):
        with pytest.raises(StorageError, match="no name of a file"):
            act(name)


def test_a_missing_file_is_named(folder: Folder) -> None:
    with pytest.raises(StorageError, match=r"runs/sub/file\b.*(No such file|does not exist)"):
        folder.child("sub").read_bytes("file")


def test_local_paths_are_absolute_and_file_addresses_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder.open("runs").local_path == tmp_path / "runs"
    assert Folder.open("~/runs").uri == str(tmp_path / "runs")
    assert Folder.open(f"file://{tmp_path}/a%20b").local_path == tmp_path / "a b"


def test_only_local_folders_have_a_local_path(s3_uri: str) -> None:
    assert Folder.open(s3_uri).local_path is None


def test_other_libraries_find_the_same_files(folder: Folder) -> None:
    folder.write_bytes("file", b"1")
    filesystem, path = folder.arrow
    with filesystem.open_input_file(f"{path}/file") as file:
        assert file.read() == b"1"


def test_the_query_stays_with_the_children(s3_uri: str) -> None:
    base, _, query = s3_uri.partition("?")
    child = Folder.open(s3_uri).child("a", "b")
    assert child.uri == f"{base}/a/b?{query}"
    assert str(child) == f"{base}/a/b"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "no path and no address"),
        ("s3:/bucket/runs", "no path and no address"),
        ("ftp://host/runs", "(?i)unrecognized"),
        ("s3://bucket/runs?nonsense=1", "nonsense"),
        ("a\0b", "no path and no address"),
    ],
)
def test_bad_addresses_are_refused(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Folder.open(uri)


def test_keys_in_an_address_are_never_shown(s3_endpoint: str) -> None:
    query = f"scheme=http&endpoint_override={s3_endpoint}"
    folder = Folder.open(f"s3://key:canary@no-such-bucket/runs?{query}")
    with pytest.raises(StorageError) as caught:
        folder.write_bytes("file", b"1")
    with pytest.raises(StorageError) as malformed:
        Folder.open("s3://key:canary@bucket/a b")
    for text in (str(folder), repr(folder), str(caught.value), str(malformed.value)):
        assert "canary" not in text


def test_a_missing_bucket_is_named_with_what_to_do(s3_endpoint: str) -> None:
    uri = f"s3://no-such-bucket/runs?scheme=http&endpoint_override={s3_endpoint}"
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/runs/file: .*Create the bucket"):
        Folder.open(uri).write_bytes("file", b"1")


@pytest.mark.slow
def test_an_unreachable_endpoint_says_so(s3_endpoint: str) -> None:
    uri = "s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:1"
    with pytest.raises(StorageError, match="endpoint is right and can be reached"):
        Folder.open(uri).write_bytes("file", b"1")


@pytest.mark.parametrize(
    ("number", "action"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "permission"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failed_write_says_what_to_do_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, action: str
) -> None:
    folder = Folder.open(str(tmp_path))
    folder.write_bytes("file", b"old")

    def fail(*args: object, **keywords: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match=rf"{tmp_path}/file: .*{os.strerror(number)}.*{action}"):
            folder.write_bytes("file", b"new")
    assert folder.read_bytes("file") == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    folder = Folder.open(str(small_disk))
    folder.write_bytes("file", b"old")
    with pytest.raises(StorageError, match=r"No space left on device.*Free some space"):
        folder.write_bytes("file", bytes(2_000_000))
    assert folder.read_bytes("file") == b"old"
    assert os.listdir(small_disk) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_not_being_allowed_to_look_is_no_absence(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(StorageError, match="permission"):
        Folder.open(str(locked)).exists("file")


def test_an_unreadable_folder_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "lstat", refuse)
    for act in (Folder.names, lambda folder: folder.exists("file")):
        with pytest.raises(StorageError, match="permission"):
            act(Folder.open(str(tmp_path)))


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(StorageError, match="A file stands where a folder is needed"):
        Folder.open(str(tmp_path / "runs")).write_bytes("file", b"1")


def test_modes_do_not_follow_an_open_umask(tmp_path: Path, umask: None) -> None:
    Folder.open(str(tmp_path)).child("new").write_bytes("file", b"1")
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755


def test_what_a_killed_write_leaves_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".file.0123abcd.tmp").write_bytes(b"half")
    assert Folder.open(str(tmp_path)).names() == []


def test_deleting_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    Folder.open(str(tmp_path)).delete("link")
    assert os.listdir(tmp_path) == ["data"]


def test_a_table_is_read_without_threads_which_would_hold_its_bytes_at_the_programs_end(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({name: list(range(1000)) for name in "abc"}), path)
    program = f"""
import os
from tltrain.arrow_files import read_parquet
content = open({str(path)!r}, "rb").read()
before = os.listdir("/proc/self/task")
assert read_parquet(content, ["b", "a"]).column_names == ["b", "a"]
assert os.listdir("/proc/self/task") == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)
