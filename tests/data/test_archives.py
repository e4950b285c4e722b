"""WebDataset shards: what is a sample, what is left out, what is refused, and that nothing is unpacked."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import encode, spec
from PIL import Image

from tltrain.data.sources import Source, open_source
from tltrain.data.splits import load_splits
from tltrain.errors import DataError
from tltrain.storage import Folder

IMAGES = [encode(Image.new("L", (4, 4), shade)) for shade in range(6)]


def write_shard(path: Path, members: dict[str, bytes], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(number: int, label: str) -> dict[str, bytes]:
    return {f"a/{number:04d}.png": IMAGES[number], f"a/{number:04d}.cls": label.encode()}


def opened(source: object, **settings: object) -> Source:
    return open_source(str(source), spec(**settings), split="train")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three samples each."""
    write_shard(tmp_path / "s-000.tar", {**sample(2, "10"), **sample(0, "2"), **sample(1, "10")})
    write_shard(tmp_path / "s-001.tar", {**sample(3, "2"), **sample(4, "2"), **sample(5, "10\n")})
    return tmp_path


def test_samples_are_read_in_place_by_shard_and_name(shards: Path) -> None:
    source = opened(f"webdataset:{shards}/s-*.tar")

    assert source.classes == ("2", "10")
    assert source.labels.tolist() == [0, 1, 1, 0, 0, 1]
    assert [source.read(i) for i in range(6)] == IMAGES
    assert source.identity(4) == "s-001.tar/a/0004.png"
    again = pickle.loads(pickle.dumps(source))
    assert again.read(5) == IMAGES[5]
    assert again.fingerprint() == source.fingerprint()


def test_braces_suffix_and_address_name_the_same_shards(shards: Path, s3_uri: str) -> None:
    whole = opened(f"webdataset:{shards}/s-*.tar")
    assert opened(f"webdataset:{shards}/s-{{000..001}}.tar").fingerprint() == whole.fingerprint()
    assert len(opened(shards / "s-000.tar")) == 3
    for name in ("s-000.tar", "s-001.tar"):
        Folder.open(s3_uri).write_bytes(name, (shards / name).read_bytes())
    address, _, query = s3_uri.partition("?")

    remote = opened(f"webdataset:{address}/s-*.tar?{query}")

    assert remote.fingerprint() == whole.fingerprint()
    assert [remote.read(i) for i in range(6)] == IMAGES
    assert not remote.fork_safe


def test_labels_in_json_and_splits_of_a_fraction(tmp_path: Path) -> None:
    members = {}
    for number in range(6):
        members[f"{number}.jpg"] = IMAGES[number]
        members[f"{number}.json"] = f'{{"kind": "{("cat", "dog")[number % 2]}", "label": 7}}'.encode()
    write_shard(tmp_path / "x.tar", members)

    splits = load_splits(spec(tmp_path / "x.tar", val=0.3, label_column="kind"), 0)

    assert splits.classes == ("cat", "dog")
    assert splits.val is not None
    assert (len(splits.train), len(splits.val)) == (4, 2)


def test_links_and_names_that_lead_out_are_left_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(IMAGES[0])
    path = write_shard(
        tmp_path / "x.tar", {**sample(1, "a"), **sample(2, "b"), "../evil.png": IMAGES[3], "/e.png": b""}
    )
    with tarfile.open(path, "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)

    source = opened(path)

    assert len(source) == 2
    assert "5 members are left out" in source.warnings[0]
    assert not (tmp_path.parent / "evil.png").exists()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no label": (lambda path: write_shard(path, {"1.png": IMAGES[0]}), "1 images without a label: 1.png"),
    "no images": (lambda path: write_shard(path, {"1.cls": b"0"}), "holds no images"),
    "compressed": (lambda path: write_shard(path, sample(0, "1"), mode="w:gz"), "compressed ones cannot be read"),
    "no tar": (lambda path: path.write_bytes(b"x" * 2000), "is no tar file"),
    "cut short": (
        lambda path: path.write_bytes(write_shard(path, {"1.png": b"x" * 9000}).read_bytes()[:3000]),
        "no tar file that can be read",
    ),
    "two images": (
        lambda path: write_shard(path, {"1.png": IMAGES[0], "1.jpg": IMAGES[1], "1.cls": b"0"}),
        "several images for one sample: 1.jpg",
    ),
    "bad json": (lambda path: write_shard(path, {"1.png": IMAGES[0], "1.json": b"["}), "1.json"),
    "bad value": (lambda path: write_shard(path, {"1.png": IMAGES[0], "1.json": b'{"label": [1]}'}), "no label"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_shards_are_explained(name: str, tmp_path: Path) -> None:
    write, words = BAD[name]
    write(tmp_path / "x.tar")

    with pytest.raises(DataError) as caught:
        opened(tmp_path / "x.tar")

    assert words in str(caught.value)
    assert "data.train" in str(caught.value)


def test_missing_shards_are_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"s-002\.tar does not exist"):
        opened(f"webdataset:{shards}/s-{{000..002}}.tar")
    with pytest.raises(DataError, match="matches no file"):
        opened(f"webdataset:{shards}/t-*.tar")
