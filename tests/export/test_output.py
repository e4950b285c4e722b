"""Tests of tltrain.export.output: an export appears whole, and nothing of the user's is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tltrain.errors import ExportError, SpecError, StorageError
from tltrain.export.output import new_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(out: Path, content: str, *, force: bool = False) -> None:
    with new_folder(out, force=force) as folder:
        (folder / "model.json").write_text(content)


def fail(out: Path) -> None:
    with new_folder(out, force=True) as folder:
        (folder / "model.json").write_text("new")
        raise ExportError("it differs")


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "out", force=False) as folder:
        (folder / "model.json").write_text("x")
        assert not (tmp_path / "a" / "out").exists()

    assert names(tmp_path / "a") == ["out"]
    assert names(tmp_path / "a" / "out") == ["model.json"]


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        fail(tmp_path / "out")

    assert names(tmp_path) == []


def test_an_earlier_export_is_replaced_by_force_alone(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    with pytest.raises(SpecError, match="add --force"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "model.json").read_text() == "old"
    write(tmp_path / "out", "new", force=True)

    assert (tmp_path / "out" / "model.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_earlier_export_stays_where_the_new_one_fails(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    with pytest.raises(ExportError):
        fail(tmp_path / "out")

    assert (tmp_path / "out" / "model.json").read_text() == "old"


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "thesis.tex").write_text("mine")

    with pytest.raises(SpecError, match=r"thesis\.tex"):
        write(tmp_path / "out", "new", force=True)

    assert names(tmp_path / "out") == ["model.json", "thesis.tex"]


@pytest.mark.parametrize("force", [False, True])
def test_files_links_and_addresses_are_refused(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path)

    for out in (tmp_path / "file", tmp_path / "link", Path("s3://bucket/out")):
        with pytest.raises(SpecError):
            write(out, "new", force=force)

    assert (tmp_path / "file").read_text() == "mine"


def test_what_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")

    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "out", "new")
