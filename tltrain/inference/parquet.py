"""Unlabelled images in Parquet: read one row group at a time, by whichever process needs it."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tltrain.data.base import FilesSource, Source, digest
from tltrain.data.locations import Location
from tltrain.data.tables import IMAGE_COLUMNS
from tltrain.errors import DataError, Problem

_THREADS = 16


class ParquetSource(Source):
    """Image bytes, or structs of `bytes` and `path`, in one column of Parquet files with the same schema.

    A process keeps the row group it read last, so images are best read in order.
    """

    def __init__(self, root: Location, paths: Sequence[str], column: str, group_rows: Sequence[Sequence[int]]) -> None:
        """Take the files' paths below `root`, and for each file the number of rows of each of its row groups."""
        self.classes = ()
        self.fork_safe = root.is_local
        self._root, self._paths, self._column = root, list(paths), column
        self._groups = [(file, group) for file, rows in enumerate(group_rows) for group in range(len(rows))]
        counts = [count for rows in group_rows for count in rows]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._file_starts = np.concatenate([[0], np.cumsum([sum(rows) for rows in group_rows], dtype=np.int64)])
        self.labels = np.zeros(int(self._starts[-1]), np.int64)
        self._read_last: tuple[int, pa.ChunkedArray] | None = None

    def read(self, index: int) -> bytes:
        """Return the bytes of one row. Raises DataError where it has none."""
        number = bisect.bisect_right(self._starts, index) - 1
        value: Any = self._group(number)[index - int(self._starts[number])].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or (self._beside(value["path"]) if value.get("path") else None)
        if value is None:
            raise DataError(Problem("has no image (null)", "Fill it or leave the row out", where=self.identity(index)))
        return value

    def identity(self, index: int) -> str:
        """Return `FILE#ROW`, counted from 0 in each file."""
        file = bisect.bisect_right(self._file_starts, index) - 1
        return f"{self._paths[file]}#{index - int(self._file_starts[file])}"

    def fingerprint(self) -> str:
        """Return a sha256 over files and rows."""
        return digest("parquet", (), self._starts, names=[*self._paths, self._column])

    def _beside(self, path: str) -> bytes:
        return self._root.read(path)

    def _group(self, number: int) -> pa.ChunkedArray:
        if self._read_last is None or self._read_last[0] != number:
            file, group = self._groups[number]
            self._read_last = None  # never two row groups in memory
            try:
                with _opened(self._root, self._paths[file]) as parquet:
                    self._read_last = number, parquet.read_row_group(group, columns=[self._column]).column(0)
            except pa.ArrowException as error:
                what = f"its row group {group} cannot be read: {error}"
                raise DataError(Problem(what, "Write the file again", where=self._paths[file])) from error
        return self._read_last[1]


def open_parquet(
    root: Location, paths: Sequence[str], image_column: str | None, run_column: str | None
) -> tuple[Source, list[str]]:
    """Open Parquet files with a column of images; return it, and the names of rows that have none.

    Columns as `tltrain.inference.images.open_images` says. Raises DataError where there is none or files differ.
    """
    with ThreadPoolExecutor(_THREADS) as executor:
        found = list(executor.map(lambda path: _look(root, path), paths))
    column = _choose(f"{root}/{paths[0]}", found[0][0], image_column, run_column)
    for path, (schema, _) in zip(paths, found, strict=True):
        if column not in schema.names or schema.field(column).type != found[0][0].field(column).type:
            what = f"{root}/{path} has no column {column} of the kind that {paths[0]} has"
            raise DataError(what, "Predict files of different kinds one after the other")
    kind = found[0][0].field(column).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _named_files(root, paths, column)
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)):
        what = f"{root}/{paths[0]}: the column {column} holds {kind}, not image bytes or paths"
        raise DataError(what, "Name another with --image-column")
    return ParquetSource(root, paths, column, [rows for _, rows in found]), []


def _opened(root: Location, path: str) -> pq.ParquetFile:
    return pq.ParquetFile(root.child(path), filesystem=root.filesystem)


def _look(root: Location, path: str) -> tuple[pa.Schema, list[int]]:
    """Return a file's schema and the number of rows of each of its row groups."""
    try:
        with _opened(root, path) as parquet:
            metadata = parquet.metadata
            return parquet.schema_arrow, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        what = f"{root}/{path} cannot be read as Parquet: {error}"
        raise DataError(what, "Check that the file is whole and may be read") from error


def _choose(where: str, schema: pa.Schema, wanted: str | None, run_column: str | None) -> str:
    if wanted is None:
        known = [name for name in (run_column, *IMAGE_COLUMNS) if name in schema.names]
        if known and known[0] is not None:
            return known[0]
    elif wanted in schema.names:
        return wanted
    near = difflib.get_close_matches(wanted or "image", schema.names, n=1)
    what = f"{where} has no column {wanted}" if wanted else f"{where} has no column of images"
    choice = f"Name one with --image-column: {', '.join(schema.names)}"
    raise DataError(what, choice + (f" ({near[0]}?)" if near else ""))


def _named_files(root: Location, paths: Sequence[str], column: str) -> tuple[Source, list[str]]:
    """The files that a column of paths names, relative to the folder of the table they are named in."""
    found: list[str] = []
    without: list[str] = []
    for path in paths:
        folder = path.rpartition("/")[0]
        with _opened(root, path) as parquet:
            names = parquet.read(columns=[column]).column(0).to_pylist()
        found += [f"{folder}/{name}" if folder else name for name in names if name]
        without += [f"{path}#{row}" for row, name in enumerate(names) if not name]
    sizes = np.full(len(found), -1, np.int64)
    return FilesSource(root, found, sizes, np.zeros(len(found), np.int64), ()), without
