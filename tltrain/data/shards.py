"""A folder of Parquet files as one source, from a disk or from cloud storage: in memory, or mapped from a copy here."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tltrain.data.locations import Location
from tltrain.data.tables import PARQUET_SUFFIXES, ColumnSource, class_names, column_names, columns_of, is_binary
from tltrain.errors import DataError, Problem
from tltrain.spec.schema import DataSpec

MAX_IN_MEMORY = 256 * 2**20
"""Bytes of Parquet files up to which each process holds the images itself."""
_THREADS = 4
_ID_COLUMN = "id"
_logger = logging.getLogger(__name__)


class ShardsSource(ColumnSource):
    """Encoded images of several files, with ids of their own where the files have some."""

    def __init__(
        self,
        name: str,
        images: pa.ChunkedArray,
        labels: np.ndarray,
        classes: Sequence[str],
        ids: pa.ChunkedArray | None,
    ) -> None:
        """Take N encoded images, their labels, int64 [N], and their ids or None; `name` is the folder's name."""
        super().__init__(name, images, labels, classes)
        self._ids = ids

    def identity(self, index: int) -> str:
        """Return the id in the files, else `FOLDER#ROW`."""
        return super().identity(index) if self._ids is None else self._ids[index].as_py()


def shard_files(location: Location) -> list[fs.FileInfo]:
    """Return the Parquet files right in a folder, in the order of their names; none in other folders."""
    try:
        infos = location.filesystem.get_file_info(fs.FileSelector(location.path))
    except OSError as error:
        raise DataError(f"cannot list {location}: {error}", "Check the address and your access.") from error
    files = [info for info in infos if info.type == fs.FileType.File and not info.base_name.startswith((".", "_"))]
    return sorted((f for f in files if f.base_name.lower().endswith(PARQUET_SUFFIXES)), key=lambda f: f.base_name)


def open_shards(location: Location, files: Sequence[fs.FileInfo], data: DataSpec, key: str) -> ShardsSource:
    """Open Parquet files with a column of image bytes and one of labels, and ids where there is a column `id`.

    Up to MAX_IN_MEMORY bytes of files are read into memory. More are copied once into an Arrow file under `data.root`,
    which all processes of this machine map: it is read as fast as files of the disk, and takes no memory of its own.

    Raises DataError for files that differ in their columns, nulls, and types that do not fit.
    """
    schema = _schema(location, files[0], key)
    columns = column_names(str(location), schema.names, data, key)
    wanted = [*columns, *([_ID_COLUMN] if _ID_COLUMN in schema.names and _ID_COLUMN not in columns else [])]
    if sum(info.size for info in files) <= MAX_IN_MEMORY:
        tables = list(_tables(location, files, wanted, key))
        table = _concatenated(location, tables, key)
    else:
        table = _mapped(location, files, wanted, Path(data.root).expanduser(), key)
    names = class_names(schema, data.label_column)
    images, labels, classes = columns_of(str(location), table.select(columns), names, key)
    if not is_binary(images.type):
        action = "Pack the images themselves: tltrain data pack"
        raise DataError(Problem(f"{location} names image files instead of holding them", action, key=key))
    ids = table.column(_ID_COLUMN) if _ID_COLUMN in wanted else None
    is_text = ids is not None and pa.types.is_string(ids.type) and not ids.null_count
    return ShardsSource(location.name, images, labels, classes, ids if is_text else None)


def _schema(location: Location, info: fs.FileInfo, key: str) -> pa.Schema:
    try:
        return pq.read_schema(info.path, filesystem=location.filesystem)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(location, info, error, key) from error


def _tables(location: Location, files: Sequence[fs.FileInfo], columns: list[str], key: str) -> Iterator[pa.Table]:
    """Yield the tables of files in their order, a few of them read ahead."""
    waiting: list[Future[pa.Table]] = []
    with ThreadPoolExecutor(_THREADS) as executor:
        for info in files:
            waiting.append(executor.submit(_read, location, info, columns, key))
            if len(waiting) >= _THREADS:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _read(location: Location, info: fs.FileInfo, columns: list[str], key: str) -> pa.Table:
    try:
        # One request for the whole file: image bytes are nearly all of it.
        with location.filesystem.open_input_stream(info.path) as stream:
            content = stream.read_buffer(info.size)
        return pq.read_table(pa.BufferReader(content), columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unreadable(location, info, error, key) from error


def _unreadable(location: Location, info: fs.FileInfo, error: Exception, key: str) -> DataError:
    what = f"{location}/{info.base_name} cannot be read: {error}"
    return DataError(Problem(what, "Check that it is whole and has the columns of the others", key=key))


def _concatenated(location: Location, tables: list[pa.Table], key: str) -> pa.Table:
    try:
        return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    except pa.ArrowInvalid as error:
        what = f"the files of {location} have columns of different types: {error}"
        raise DataError(Problem(what, "Write them alike", key=key)) from error


def _mapped(location: Location, files: Sequence[fs.FileInfo], columns: list[str], root: Path, key: str) -> pa.Table:
    """Return the files' table mapped from a copy under `root`; the first process makes it and the others wait."""
    state = [[info.base_name, info.size, info.mtime_ns] for info in files]
    name = hashlib.sha256(json.dumps([str(location), columns, state]).encode()).hexdigest()[:24]
    path = root / "parquet" / f"{name}.arrow"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            if not path.exists():
                size = sum(info.size for info in files) / 2**30
                _logger.info("copying %s (%.1f GiB) to %s, once", location, size, path)
                _copy(path, _tables(location, files, columns, key))
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except OSError as error:
        what = f"the images of {location} cannot be copied to {path.parent}: {error}"
        raise DataError(Problem(what, "Free some space there, or set data.root to another disk", key=key)) from error


def _copy(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables into one Arrow file, which has its name once it is whole."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        first = next(tables).replace_schema_metadata(None)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.replace_schema_metadata(None).cast(first.schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
