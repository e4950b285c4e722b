"""Pack a split into Parquet shards: encoded images as they are, labels, ids. The same input gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tltrain.data.base import Split
from tltrain.errors import Problem, StorageError
from tltrain.storage import Folder

PACK_FILE = "pack.json"
"""Written last: a folder that has it is whole."""
SHARD_BYTES = 128 * 2**20
_MARK = b"tltrain.pack"
_CLASSES = b"tltrain.classes"
_ROWS_PER_GROUP = 1024
_SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.int32())])


@dataclass(frozen=True)
class Packed:
    """What was packed: images, shards, bytes of the shards, and how many shards were there already."""

    num_images: int
    num_shards: int
    num_bytes: int
    num_kept: int


def pack_split(
    split: Split,
    classes: tuple[str, ...],
    out: Folder,
    *,
    num_threads: int,
    shard_bytes: int = SHARD_BYTES,
    advance: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Write a split's images as `part-00000.parquet`, ... into a folder, in the split's order, and pack.json last.

    A shard ends with the image that makes it `shard_bytes` of images or more. Bytes depend on the images, their ids and
    labels, `classes` and `shard_bytes` alone. Shards that an earlier call has finished are kept. Images that a source
    gives decoded become PNG.

    num_threads: how many images are read at a time. advance: told how many images are done since the last call.

    Raises DataError for images that cannot be read, StorageError where the folder cannot be written or holds something
    else than a part of this.
    """
    key = _key(split, classes, shard_bytes)
    if out.exists(PACK_FILE):
        _check_same(json.loads(out.read_bytes(PACK_FILE))["key"], key, out)
    shards, start = _finished(out, key)
    num_kept = len(shards)
    advance(start)
    for rows in _shards(split, start, num_threads, shard_bytes):
        name = _name(len(shards))
        content = _encoded(rows, classes, {"key": key, "start": start, "rows": len(rows)})
        out.write_bytes(name, content)
        shards.append({"name": name, "rows": len(rows), "bytes": len(content)})
        start += len(rows)
        advance(len(rows))
    description = {"version": 1, "key": key, "classes": list(classes), "images": start, "shards": shards}
    out.write_bytes(PACK_FILE, json.dumps(description, indent=2).encode())
    return Packed(start, len(shards), sum(shard["bytes"] for shard in shards), num_kept)


def _key(split: Split, classes: tuple[str, ...], shard_bytes: int) -> str:
    """Return what tells one pack from another; no image is read."""
    result = hashlib.sha256(json.dumps([split.source.fingerprint(), classes, shard_bytes]).encode())
    result.update(split.indices.astype("<i8").tobytes() + split.labels.astype("<i8").tobytes())
    return result.hexdigest()


def _finished(out: Folder, key: str) -> tuple[list[dict], int]:
    """Return the shards that are there already, from the first on without a gap, and the images in them."""
    there, shards, start = set(out.names()), [], 0
    for number in count():
        if _name(number) not in there:
            return shards, start
        mark = _mark(out, _name(number))
        _check_same(mark["key"], key, out)
        shards.append({"name": _name(number), "rows": mark["rows"], "bytes": mark["bytes"]})
        start = mark["start"] + mark["rows"]
    raise AssertionError("shards have no end")


def _mark(out: Folder, name: str) -> dict:
    """Return what a shard says of itself, with its size in bytes."""
    filesystem, path = out.arrow
    try:
        with filesystem.open_input_file(f"{path.rstrip('/')}/{name}") as file:
            metadata = pq.read_schema(file).metadata or {}
            return {**json.loads(metadata[_MARK]), "bytes": file.size()}
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        what = f"{name} is no shard that `tltrain data pack` wrote"
        raise StorageError(Problem(what, "Pack into another folder, or delete it", str(out))) from error


def _check_same(theirs: str, ours: str, out: Folder) -> None:
    if theirs != ours:
        what = "other images, or the same in another way, are packed here"
        raise StorageError(Problem(what, "Pack into another folder, or delete this one", str(out)))


def _shards(split: Split, start: int, num_threads: int, shard_bytes: int) -> Iterator[list[tuple[str, bytes, int]]]:
    """Yield the rows of one shard after the other."""
    rows: list[tuple[str, bytes, int]] = []
    size = 0
    for position, content in _contents(split, start, num_threads):
        rows.append((split.identity(position), content, int(split.labels[position])))
        size += len(content)
        if size >= shard_bytes:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _contents(split: Split, start: int, num_threads: int) -> Iterator[tuple[int, bytes]]:
    """Yield encoded images in order, a few read ahead."""
    waiting: list[tuple[int, Future[bytes]]] = []
    with ThreadPoolExecutor(num_threads if split.source.thread_safe else 1) as executor:
        for position in range(start, len(split)):
            waiting.append((position, executor.submit(_content, split, position)))
            if len(waiting) >= 4 * num_threads:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _content(split: Split, position: int) -> bytes:
    content = split.read(position)
    if not isinstance(content, Image.Image):
        return content
    buffer = io.BytesIO()
    content.save(buffer, "PNG")
    return buffer.getvalue()


def _encoded(rows: list[tuple[str, bytes, int]], classes: tuple[str, ...], mark: dict) -> bytes:
    ids, images, labels = zip(*rows, strict=True)
    columns = [pa.array(ids, pa.string()), pa.array(images, pa.binary()), pa.array(np.array(labels, np.int32))]
    metadata = {_CLASSES: json.dumps(classes), _MARK: json.dumps(mark)}
    table = pa.table(columns, schema=_SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=False, row_group_size=_ROWS_PER_GROUP
    )
    return sink.getvalue().to_pybytes()


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"
