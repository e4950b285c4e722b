"""Which images are classified, and what they are called: files, folders, patterns, Parquet, cloud storage."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tltrain.errors import DataError, SpecError
from tltrain.inference.images import Images, open_images
from tltrain.storage import Folder

CONTENT = {"b.png": b"b", "a.jpg": b"a", "sub/c.PNG": b"c", "notes.txt": b"x", ".hidden.png": b"h"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, `photos`, in the current directory."""
    for name, content in CONTENT.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def read(images: Images) -> dict[str, bytes]:
    source = images.source
    return {source.identity(i): bytes(source.read(i)) for i in range(len(source))}  # type: ignore[arg-type]


def test_a_folder_is_walked_in_order_and_names_are_below_it(folder: Path) -> None:
    images = read(open_images([str(folder)]))

    assert list(images.items()) == [("a.jpg", b"a"), ("b.png", b"b"), ("sub/c.PNG", b"c")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photos/b.png"], ["photos/b.png"]),
        (["photos/b.png", "photos/a.jpg"], ["photos/b.png", "photos/a.jpg"]),  # as a shell makes them of a pattern
        (["photos/*"], ["photos/a.jpg", "photos/b.png"]),
        (["photos/**/*.[pP][nN][gG]"], ["photos/b.png", "photos/sub/c.PNG"]),
        (["photos/?.jpg"], ["photos/a.jpg"]),
    ],
)
def test_files_and_patterns_are_named_as_they_were_typed(folder: Path, names: list[str], expected: list[str]) -> None:
    assert list(read(open_images(names))) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder: Path) -> None:
    (folder / "x[1].png").write_bytes(b"x")

    assert read(open_images([str(folder / "x[1].png")])) == {str(folder / "x[1].png"): b"x"}


def test_files_that_cannot_be_read_are_listed_and_stop_nothing(folder: Path) -> None:
    os.symlink(folder / "nowhere", folder / "broken.png")

    assert [bad.reason for bad in open_images([str(folder)]).bad] == ["the link is broken"]
    several = open_images(["photos/a.jpg", "photos/gone.jpg"])
    assert list(read(several)) == ["photos/a.jpg"]
    assert [(bad.id, bad.reason) for bad in several.bad] == [("photos/gone.jpg", "does not exist")]


@pytest.mark.parametrize("names", [["photos", "photos/a.jpg"], ["s3://bucket/a.png", "photos/a.jpg"]])
def test_only_files_are_named_together(folder: Path, names: list[str]) -> None:
    with pytest.raises(SpecError, match="only these may be named together"):
        open_images(names)


@pytest.mark.parametrize("name", ["gone.png", "photos/*.gif", "empty", "s3:/typo/*.png"])
def test_nothing_to_classify_is_an_error(folder: Path, name: str) -> None:
    (folder.parent / "empty").mkdir()

    with pytest.raises(DataError):
        open_images([name])


def write_shards(folder: Path) -> None:
    for number, rows in enumerate((5, 3)):
        values = [f"{number}-{row}".encode() for row in range(rows)]
        table = pa.table({"other": range(rows), "image": pa.array(values, pa.binary())})
        pq.write_table(table, folder / f"shard-{number}.parquet", row_group_size=2)


def test_parquet_is_read_by_row_group_over_all_files_of_a_folder(tmp_path: Path) -> None:
    write_shards(tmp_path)

    images = read(open_images([str(tmp_path)]))

    assert images["shard-0.parquet#4"] == b"0-4"
    assert images["shard-1.parquet#0"] == b"1-0"
    assert len(images) == 8
    assert list(read(open_images([str(tmp_path / "shard-1.parquet")]))) == [f"shard-1.parquet#{i}" for i in range(3)]


def test_parquet_of_paths_or_structs_names_files_beside_it(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg", None, "gone.jpg"]}), folder / "paths.parquet")
    structs = [{"bytes": b"inside", "path": "a.jpg"}, {"bytes": None, "path": "sub/c.PNG"}, None]
    pq.write_table(pa.table({"image": structs}), folder / "structs.parquet")

    paths = open_images([str(folder / "paths.parquet")])
    assert [bad.id for bad in paths.bad] == ["paths.parquet#1"]
    assert paths.source.read(0) == b"a"
    with pytest.raises(DataError, match="cannot be read"):
        paths.source.read(1)
    inside = open_images([str(folder / "structs.parquet")]).source
    assert [inside.read(0), inside.read(1)] == [b"inside", b"c"]
    with pytest.raises(DataError, match="has no image"):
        inside.read(2)


def test_the_column_of_images_is_chosen_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"photo": [b"p"], "scan": [b"s"], "size": [1]}), path)

    assert open_images([path], "scan").source.read(0) == b"s"
    assert open_images([path], run_column="photo").source.read(0) == b"p"
    with pytest.raises(DataError, match=r"no column of images.*--image-column: photo, scan, size"):
        open_images([path])
    with pytest.raises(DataError, match=r"no column scam.*\(scan\?\)"):
        open_images([path], "scam")
    with pytest.raises(DataError, match="holds int64"):
        open_images([path], "size")


def test_cloud_storage_is_listed_matched_and_read(s3_uri: str, tmp_path: Path) -> None:
    root = Folder.open(s3_uri)
    for name, content in CONTENT.items():
        *above, last = name.split("/")
        root.child(*above).write_bytes(last, content)
    write_shards(tmp_path)
    root.child("shards").write_file("s.parquet", tmp_path / "shard-0.parquet")
    address, _, query = s3_uri.partition("?")

    assert read(open_images([s3_uri])) == {"a.jpg": b"a", "b.png": b"b", "sub/c.PNG": b"c"}
    assert read(open_images([f"{address}/b.png?{query}"])) == {"b.png": b"b"}
    assert read(open_images([f"{address}/**/*.PNG?{query}"])) == {"sub/c.PNG": b"c"}
    assert read(open_images([f"{address}/shards/s.parquet?{query}"]))["s.parquet#4"] == b"0-4"
    assert not open_images([s3_uri]).source.fork_safe
