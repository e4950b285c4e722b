"""Packing: the same input gives the same bytes, a stopped pack goes on, and a pack is a source like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encode, spec
from PIL import Image

from tltrain.data import shards
from tltrain.data.base import Source, Split
from tltrain.data.pack import pack_split
from tltrain.data.sources import open_source
from tltrain.data.splits import load_splits
from tltrain.errors import DataError, StorageError
from tltrain.storage import Folder

SHARD_BYTES = 1500


def packed(source: object, out: str | Path, num_threads: int = 2, shard_bytes: int = SHARD_BYTES) -> Folder:
    split = load_splits(spec(source), 0).train
    folder = Folder.open(str(out))
    pack_split(split, split.source.classes, folder, num_threads=num_threads, shard_bytes=shard_bytes)
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in folder.names()}


def opened(path: object, **settings: object) -> Source:
    return open_source(str(path), spec(**settings), split="train")


def test_bytes_do_not_depend_on_the_number_of_workers(digit_folder: Path, tmp_path: Path) -> None:
    one = contents(packed(digit_folder, tmp_path / "one", num_threads=1))
    many = contents(packed(digit_folder, tmp_path / "many", num_threads=7))

    assert one == many
    assert len(one) > 4
    assert set(one) == {"pack.json", *(f"part-{number:05d}.parquet" for number in range(len(one) - 1))}


def test_packed_images_are_the_source_itself(digit_folder: Path, tmp_path: Path) -> None:
    packed(digit_folder, tmp_path / "out")
    original, again = opened(digit_folder), opened(tmp_path / "out")

    assert again.classes == original.classes
    assert again.labels.tolist() == original.labels.tolist()
    for index in range(len(original)):
        assert again.read(index) == original.read(index)
        assert again.identity(index) == original.identity(index)


def test_fractions_pick_the_same_images_before_and_after(digit_folder: Path, tmp_path: Path) -> None:
    packed(digit_folder, tmp_path / "out")

    before, after = (load_splits(spec(path, val=0.2, test=0.1), 3) for path in (digit_folder, tmp_path / "out"))

    for name in ("train", "val", "test"):
        assert getattr(before, name).indices.tolist() == getattr(after, name).indices.tolist()


class Stops(Source):
    """A source that fails at one image until it is told not to."""

    def __init__(self, source: Source, stop: int) -> None:
        self._source, self.stop, self.num_reads = source, stop, 0
        self.classes, self.labels = source.classes, source.labels

    def read(self, index: int) -> bytes | Image.Image:
        if index == self.stop:
            raise DataError("stopped")
        self.num_reads += 1
        return self._source.read(index)

    def identity(self, index: int) -> str:
        return self._source.identity(index)

    def fingerprint(self) -> str:
        return self._source.fingerprint()


@pytest.mark.parametrize("is_remote", [False, True])
def test_stopped_pack_goes_on_behind_its_last_whole_shard(
    digit_folder: Path, tmp_path: Path, s3_uri: str, is_remote: bool
) -> None:
    whole = contents(packed(digit_folder, tmp_path / "whole"))
    source = Stops(opened(digit_folder), 40)
    split = Split(source, np.arange(len(source)), source.labels)
    out = Folder.open(s3_uri if is_remote else str(tmp_path / "out"))

    def pack() -> int:
        return pack_split(split, source.classes, out, num_threads=1, shard_bytes=SHARD_BYTES).num_kept

    with pytest.raises(DataError, match="stopped"):
        pack()
    assert "pack.json" not in out.names()
    num_shards = len(out.names())
    assert num_shards > 1
    source.stop, source.num_reads = -1, 0

    assert pack() == num_shards
    assert source.num_reads < 40
    assert contents(out) == whole
    source.num_reads = 0
    assert pack() == len(whole) - 1
    assert source.num_reads == 0


def test_other_images_are_not_mixed_into_a_pack(digit_folder: Path, tmp_path: Path) -> None:
    packed(digit_folder, tmp_path / "out")
    with pytest.raises(StorageError, match="other images"):
        packed(digit_folder, tmp_path / "out", shard_bytes=9999)
    (tmp_path / "out" / "pack.json").unlink()
    with pytest.raises(StorageError, match="other images"):
        packed(digit_folder, tmp_path / "out", shard_bytes=9999)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(StorageError, match="is no shard"):
        packed(digit_folder, tmp_path / "own")
    assert (tmp_path / "own" / "part-00000.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize("is_mapped", [False, True])
def test_pack_on_s3_is_read_in_memory_or_from_a_copy_here(
    is_mapped: bool, digit_folder: Path, tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(digit_folder, s3_uri)
    monkeypatch.setattr(shards, "MAX_IN_MEMORY", 0 if is_mapped else 1 << 30)
    original = opened(digit_folder)

    for _ in range(2):
        source = opened(s3_uri, root=str(tmp_path / "root"))
        assert [source.read(i) for i in range(60)] == [original.read(i) for i in range(60)]
        assert source.identity(7) == original.identity(7)
    copies = [path.suffix for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert copies.count(".arrow") == (1 if is_mapped else 0)
    assert ".tmp" not in copies


def test_any_folder_of_parquet_files_is_a_source(tmp_path: Path) -> None:
    images = [encode(Image.new("L", (4, 4), shade)) for shade in range(4)]
    for number in (1, 0):
        columns = {"image": images[2 * number : 2 * number + 2], "label": ["a", "b"]}
        pq.write_table(pa.table(columns), tmp_path / f"train-{number}-of-2.parquet")
    (tmp_path / "_metadata.parquet").write_bytes(b"no")

    source = opened(tmp_path)

    assert [source.read(i) for i in range(4)] == images
    assert source.identity(3) == f"{tmp_path.name}#3"
    pq.write_table(pa.table({"image": images[:1], "kind": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read"):
        opened(tmp_path)


def test_decoded_images_become_png(tmp_path: Path) -> None:
    class Grey(Stops):
        def read(self, index: int) -> Image.Image:
            return Image.new("L", (5, 4), index)

    source = Grey(opened_pair(tmp_path), -1)
    pack_split(
        Split(source, np.arange(2), source.labels), source.classes, Folder.open(str(tmp_path / "o")), num_threads=1
    )

    content = opened(tmp_path / "o").read(1)
    assert isinstance(content, bytes)
    assert content[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "o" / "pack.json").read_text())["images"] == 2


def opened_pair(tmp_path: Path) -> Source:
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["a", "b"]}), tmp_path / "t.parquet")
    return opened(tmp_path / "t.parquet")
