"""Files on a pyarrow file system, such as s3:// or gs://: one write is one upload, which is seen whole or not at all.

Errors are those of pyarrow and of the system; `tltrain.storage` turns them into messages.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

_OBJECT_STORES = ("s3", "gcs", "abfs")  # no folders of their own there, so none can be renamed
_STAMPS_AT_A_TIME, _THREADS = 50, 32
_READS = 20


def open_address(uri: str) -> tuple[fs.FileSystem | None, str]:
    """The file system of an address, None for the local disk, and the path on it."""
    filesystem, path = fs.FileSystem.from_uri(uri)
    return None if filesystem.type_name == "local" else filesystem, path


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of a whole Parquet file, with `columns` alone where given, read by this thread.

    pyarrow's own threads let go of Python's bytes when they come to it: at the end of a program that aborts it.
    """
    with pq.ParquetFile(pa.BufferReader(content)) as parquet:
        return parquet.read(columns, use_threads=False)


def local() -> fs.FileSystem:
    """The local disk as pyarrow has it."""
    return fs.LocalFileSystem()


def read(filesystem: fs.FileSystem, path: str) -> bytes:
    """The contents that a file had at one moment, also where it is replaced meanwhile."""
    # pyarrow asks for the size first, and then for that many bytes of what stands there by now: a shorter file would
    # come with bytes behind its end, a longer one would be cut off, an empty one refused.
    for _ in range(_READS):
        with filesystem.open_input_file(path) as file:
            version = file.metadata()
            try:
                content = file.read()
            except OSError:
                if _version(filesystem, path) == version:
                    raise
                continue
        if _version(filesystem, path) == version:
            return content
    raise OSError(errno.EAGAIN, f"it was replaced each of the {_READS} times that it was read")


def _version(filesystem: fs.FileSystem, path: str) -> dict[str, bytes]:
    """What tells a file from one that has replaced it: the ETag, among others, in an object store; else empty."""
    with filesystem.open_input_file(path) as file:
        return file.metadata()


def write(filesystem: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write or replace a file, and make its folder where the file system has folders."""
    if filesystem.type_name not in _OBJECT_STORES:
        filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(path) as stream:
        stream.write(data)


def copy_here(filesystem: fs.FileSystem, path: str, local_source: str | Path) -> None:
    """Write or replace a file with a copy of a local one, without reading it into memory."""
    # One write of a mapped file: a read that fails half-way could else leave half an object.
    with pa.memory_map(str(local_source)) as source:
        write(filesystem, path, source.read_buffer())


def exists(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether there is a file or folder."""
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def names(filesystem: fs.FileSystem, path: str) -> list[str]:
    """Sorted names in a folder; empty where it does not exist."""
    selector = fs.FileSelector(path, allow_not_found=True)
    return sorted({info.base_name for info in filesystem.get_file_info(selector)})


def stamps(filesystem: fs.FileSystem, paths: Sequence[str]) -> list[tuple[int, int] | None]:
    """When each file was last written, in ns since 1970, and its size in bytes; None where there is no such file."""
    parts = [paths[start : start + _STAMPS_AT_A_TIME] for start in range(0, len(paths), _STAMPS_AT_A_TIME)]
    with ThreadPoolExecutor(_THREADS) as executor:
        infos = [info for part in executor.map(filesystem.get_file_info, parts) for info in part]
    return [(info.mtime_ns, info.size) if info.type == fs.FileType.File else None for info in infos]


def delete(filesystem: fs.FileSystem, path: str) -> None:
    """Delete a file, or a folder with all that is in it. A missing one is fine."""
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem.delete_dir(path)
    elif kind != fs.FileType.NotFound:
        filesystem.delete_file(path)


def rename(filesystem: fs.FileSystem, source: str, target: str) -> None:
    """Rename a file or folder. Object stores copy and then delete: cut short, the old one is still there whole."""
    if filesystem.type_name not in _OBJECT_STORES:
        filesystem.move(source, target)
        return
    _copy(filesystem, source, target)
    delete(filesystem, source)


def _copy(filesystem: fs.FileSystem, source: str, target: str) -> None:
    if filesystem.get_file_info(source).type != fs.FileType.Directory:
        return filesystem.copy_file(source, target)
    for info in filesystem.get_file_info(fs.FileSelector(source, recursive=True)):
        if info.type == fs.FileType.File:
            filesystem.copy_file(info.path, target + info.path[len(source) :])
