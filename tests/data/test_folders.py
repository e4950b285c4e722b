"""Image folders: classes, order, what is ignored, what is refused; on this machine and over S3."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from data_helpers import encode, spec
from PIL import Image

from tltrain.data.sources import Source, open_source
from tltrain.errors import DataError

IMAGE = encode(Image.new("L", (4, 4)))


def make(root: Path, *paths: str) -> Path:
    """Write an image at each path (a text for other suffixes); those with a slash at the end are folders."""
    for path in paths:
        target = root / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_bytes(IMAGE if target.suffix in (".png", ".JPG") else b"text")
    return root


def opened(root: object, split: str = "train") -> Source:
    assert split in ("train", "val", "test")
    return open_source(str(root), spec(), split=split)


def identities(source: Source) -> list[str]:
    return [source.identity(i) for i in range(len(source))]


def test_classes_are_folders_in_order_and_images_may_stand_deeper(tmp_path: Path) -> None:
    source = opened(make(tmp_path, "b/2.png", "b/1.JPG", "a/deep/er/9.png", "a-b/0.png", "a/1.png"))
    assert source.classes == ("a", "a-b", "b")
    assert identities(source) == ["a/1.png", "a/deep/er/9.png", "a-b/0.png", "b/1.JPG", "b/2.png"]
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    assert source.labels.dtype == np.int64
    assert source.read(0) == IMAGE


def test_fingerprint_is_of_the_content_not_the_place(tmp_path: Path) -> None:
    first = make(tmp_path / "first", "a/1.png", "b/1.png")
    shutil.copytree(first, tmp_path / "second")
    assert opened(first).fingerprint() == opened(tmp_path / "second").fingerprint()
    make(first, "b/2.png")
    assert opened(first).fingerprint() != opened(tmp_path / "second").fingerprint()


def test_clutter_is_ignored_and_other_files_are_counted(tmp_path: Path) -> None:
    clutter = ["__MACOSX/a/1.png", ".git/1.png", "a/.hidden.png", "a/Thumbs.db", ".DS_Store"]
    source = opened(make(tmp_path, "a/1.png", "b/1.png", "a/notes.txt", "b/x.heic", "b/y.txt", "top.png", *clutter))
    assert identities(source) == ["a/1.png", "b/1.png"]
    assert len(source.warnings) == 2
    assert "3 files that are not images are ignored (.txt 2, .heic 1)" in source.warnings[0]
    assert "1 images outside the class folders" in source.warnings[1]


BAD_LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "flat": (["1.png", "2.png"], ["no class folders", "FOLDER/CLASS/image.jpg"]),
    "nothing": ([".hidden/1.png"], ["no images", "FOLDER/CLASS/image.jpg"]),
    "empty classes": (
        ["a/1.png", "b/", "c/x.txt"],
        ["2 class folders hold no images: b, c"],
    ),
    "parent of splits": (["train/a/1.png", "val/a/1.png", "test/a/1.png"], ["several splits", "/train"]),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_other_layouts_are_explained(tmp_path: Path, name: str) -> None:
    paths, words = BAD_LAYOUTS[name]
    with pytest.raises(DataError) as caught:
        opened(make(tmp_path, *paths))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "data.train" in str(caught.value)


def test_parent_of_splits_suggests_the_split_that_was_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.png", "Validation/a/1.png")
    with pytest.raises(DataError, match=rf"data.val: {tmp_path}/Validation"):
        opened(tmp_path, "val")


def test_classes_named_like_splits_are_classes(tmp_path: Path) -> None:
    assert opened(make(tmp_path, "train/1.png", "test/1.png")).classes == ("test", "train")


def test_links_inside_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / "2.png").symlink_to(tmp_path / "a" / "1.png")
    assert identities(opened(tmp_path)) == ["a/1.png", "b/1.png", "b/2.png"]


LINKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "broken": (lambda root: root / "gone.png", "link is broken"),
    "leaving": (lambda root: Path("/etc/passwd"), "leaves the data folder"),
    "folder leaving": (lambda root: root.parent, "leaves the data folder"),
    "circle": (lambda root: root / "a", "leads back"),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_that_do_not_stay_inside_are_refused(tmp_path: Path, name: str) -> None:
    root = make(tmp_path / "data", "a/1.png", "b/1.png")
    target, words = LINKS[name]
    (root / "a" / "link.png").symlink_to(target(root))
    with pytest.raises(DataError, match=words) as caught:
        opened(root)
    assert "a/link.png" in str(caught.value)


def test_all_bad_links_are_told_at_once_and_ten_are_named(tmp_path: Path) -> None:
    make(tmp_path, "a/1.png", "b/1.png")
    for i in range(14):
        (tmp_path / "a" / f"{i}.gif").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"14 links are broken: a/0.gif, a/1.gif, .* and 4 more") as caught:
        opened(tmp_path)
    assert len(caught.value.problems) == 1


def test_missing_paths_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "gone")
    (tmp_path / "data.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="archives unpacked"):
        opened(tmp_path / "data.zip")
    with pytest.raises(DataError, match=r"cannot open ftp://host/x:"):
        opened("ftp://user:secret@host/x?token=secret")


def test_file_removed_later_is_named(tmp_path: Path) -> None:
    source = opened(make(tmp_path, "a/1.png", "b/1.png"))
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(DataError, match=r"b/1.png"):
        source.read(1)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server in this process with an empty bucket; yields the part of the URI after the path."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        _, port = server.get_host_and_port()
        query = f"?scheme=http&endpoint_override=127.0.0.1:{port}&allow_bucket_creation=true"
        filesystem, path = fs.FileSystem.from_uri(f"s3://images{query}")
        filesystem.create_dir(path)
        yield query
        server.stop()


def test_folder_on_s3_equals_the_folder_here(digit_folder: Path, bucket: str) -> None:
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(f"s3://images/digits{bucket}")
    fs.copy_files(str(digit_folder), path, destination_filesystem=filesystem, use_threads=False)
    here, there = opened(digit_folder), opened(f"s3://images/digits{bucket}")
    assert identities(there) == identities(here)
    assert there.fingerprint() == here.fingerprint()
    assert [there.read(i) for i in range(4)] == [here.read(i) for i in range(4)]
    assert here.fork_safe
    assert not there.fork_safe
    with pytest.raises(DataError, match=r"s3://images/gone does not exist"):
        opened(f"s3://images/gone{bucket}")
