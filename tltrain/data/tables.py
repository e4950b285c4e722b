"""Tables of labelled images: Parquet or Arrow with image bytes or paths, CSV with paths."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import posixpath
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from tltrain.data.bad import BadImage
from tltrain.data.base import FilesSource, Source, digest
from tltrain.data.locations import Location
from tltrain.errors import DataError, Problem, shown
from tltrain.spec.schema import DataSpec

CSV_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIXES = (".parquet", ".pq")
IMAGE_COLUMNS = ("image", "path", "file_name")
"""What a column of images is called where nothing else is said."""
_SHOWN = 10


class ColumnSource(Source):
    """Encoded images in a binary column of a table, held in Arrow memory or mapped from the file."""

    def __init__(self, name: str, images: pa.ChunkedArray, labels: np.ndarray, classes: Sequence[str]) -> None:
        """Take N encoded images (binary) and their labels, int64 [N]; `name` is the file's name."""
        self.classes = tuple(classes)
        self.labels = labels
        self._name = name
        self._images = images

    def read(self, index: int) -> bytes:
        """Return the bytes of one row."""
        return self._images[index].as_py()

    def identity(self, index: int) -> str:
        """Return `FILE#ROW`, counted from 0."""
        return f"{self._name}#{index}"

    def encoded_sizes(self) -> np.ndarray:
        """Return the number of bytes in each row."""
        lengths = pc.call_function("binary_length", [self._images]).combine_chunks()
        return np.from_dlpack(lengths).astype(np.int64)  # its own `to_numpy` imports pandas first

    def fingerprint(self) -> str:
        """Return a sha256 over the file's name, the sizes and the labels."""
        return digest("column", self.classes, self.encoded_sizes(), self.labels, names=[self._name])


def open_table(location: Location, data: DataSpec, key: str) -> Source:
    """Open a Parquet, Arrow (IPC file or stream) or CSV table with a column of images and one of labels.

    Images are bytes, paths relative to the table's folder, or structs of `bytes` and `path`. Labels are
    strings, or
    integers: these index the names in the schema's metadata (`tltrain.classes` or `classes`, a JSON list, or
    the ClassLabel of a Hugging Face data set) where there are any, and are names themselves where there are
    none.

    Raises DataError for missing columns, nulls, types that do not fit, and missing files.
    """
    table = _read(location, data, key)
    images, labels, classes = columns_of(str(location), table, class_names(table.schema, data.label_column), key)
    if is_binary(images.type):
        return ColumnSource(location.name, images, labels, classes)
    return _files(location, images.to_pylist(), labels, classes, key, skip_bad=data.on_bad_image == "skip")


def columns_of(
    where: str, table: pa.Table, names: list[str] | None, key: str
) -> tuple[pa.ChunkedArray, np.ndarray, list[str]]:
    """Return the images (bytes or paths), the labels, int64 [N], and the class names of a table of two columns.

    where: the table's name for messages. names: what integer labels index, if that is known. Raises DataError for nulls
    and types that do not fit.
    """
    if not table.num_rows:
        raise DataError(Problem(f"{where} has no rows", "Give a table with images", key=key))
    images = table.column(0)
    _refuse_nulls(where, table, key)
    labels, classes = _labels(where, table.column(1), names, key)
    if pa.types.is_struct(images.type):
        images = _unpack(where, images, key)
    if is_binary(images.type) or _is_string(images.type):
        return images, labels, classes
    what = f"{where}: the column {table.column_names[0]} holds {images.type}, not image bytes or paths"
    raise DataError(Problem(what, "Store encoded images (binary) or paths (string)", key=key))


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _read(location: Location, data: DataSpec, key: str) -> pa.Table:
    """Read the image column and the label column, in this order."""
    try:
        if location.name.lower().endswith(CSV_SUFFIXES):
            return _read_csv(location, data, key)
        if location.name.lower().endswith(PARQUET_SUFFIXES):
            return _read_parquet(location, data, key)
        return _read_arrow(location, data, key)
    # Types that other packages have registered with Arrow (Ray does) raise whatever they stumble over.
    except (pa.ArrowException, csv.Error, AttributeError, TypeError) as error:
        what = f"{location} cannot be read as its suffix says: {error}"
        raise DataError(Problem(what, "Check that the file is whole and of that format", key=key)) from error


def _read_parquet(location: Location, data: DataSpec, key: str) -> pa.Table:
    with pq.ParquetFile(location.path, filesystem=location.filesystem) as parquet:
        columns = column_names(str(location), parquet.schema_arrow.names, data, key)
        return parquet.read(columns=columns).select(columns)


def _read_arrow(location: Location, data: DataSpec, key: str) -> pa.Table:
    # A mapped file is shared by all processes of a node and read only where it is looked at.
    mapped = pa.memory_map(location.path) if location.is_local else pa.py_buffer(location.read())
    try:
        table = pa.ipc.open_file(mapped).read_all()
    except pa.ArrowInvalid:
        mapped = pa.memory_map(location.path) if location.is_local else mapped
        table = pa.ipc.open_stream(mapped).read_all()
    return table.select(column_names(str(location), table.column_names, data, key))


def _read_csv(location: Location, data: DataSpec, key: str) -> pa.Table:
    """Read every cell as text, so that labels such as 007 or NA stay what they are; empty cells are null."""
    text = _decoded(location, key)
    delimiter = "\t" if location.name.lower().endswith(".tsv") else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = column_names(str(location), list(rows.fieldnames or []), data, key)
    cells, too_long = [], []
    for number, row in enumerate(rows):
        cells.append([row[column] or None for column in columns])
        if None in row:  # where DictReader puts what stands behind the last column
            too_long.append(number)
    if too_long:
        what = f"{location}: {len(too_long)} rows have more cells than columns ({_rows(too_long)})"
        raise DataError(Problem(what, "Put cells with a comma in quotes", key=key))
    values = [pa.array([row[i] for row in cells], pa.string()) for i in range(2)]
    labels = values[1].to_pylist()
    if all(label is not None and _is_plain_integer(label) for label in labels):
        values[1] = values[1].cast(pa.int64())
    return pa.table(values, names=columns)


def _decoded(location: Location, key: str) -> str:
    content = location.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(Problem("is no UTF-8 text", "Save the table as UTF-8", f"{location}:{line}", key)) from error


def _is_plain_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 18 and str(int(text)) == text


def column_names(where: str, names: list[str], data: DataSpec, key: str) -> list[str]:
    """Return the names of the image column and the label column; raise DataError for those missing or there twice."""
    if not names:
        raise DataError(Problem(f"{where} has no columns", "Give a table with images and labels", key=key))
    wanted = data.image_column or next((name for name in IMAGE_COLUMNS if name in names), None)
    problems = []
    for column, setting in ((wanted, "data.image_column"), (data.label_column, "data.label_column")):
        if column is not None and names.count(column) > 1:
            problems.append(Problem(f"{where} has {names.count(column)} columns {column}", "Keep one of them", key=key))
        if column in names:
            continue
        near = difflib.get_close_matches(column or "image", names, n=1)
        what = f"{where} has no column {column}" if column else f"{where} has no column of images"
        action = f"Set {setting} to one of: {', '.join(names)}" + (f" ({near[0]}?)" if near else "")
        problems.append(Problem(what, action, key=key))
    if problems:
        raise DataError(problems)
    assert wanted is not None
    return [wanted, data.label_column]


def _refuse_nulls(where: str, table: pa.Table, key: str) -> None:
    problems = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            rows = np.flatnonzero(column.is_null().to_numpy()).tolist()
            what = f"{where}: {column.null_count} rows have no {name} ({_rows(rows)})"
            problems.append(Problem(what, "Fill them or leave these rows out", key=key))
    if problems:
        raise DataError(problems)


def _rows(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"counted from 0: {_join(numbers[:_SHOWN])}{more}"


def _join(values: Sequence[object] | np.ndarray) -> str:
    return ", ".join(shown(str(value)) for value in values)


def class_names(schema: pa.Schema, label_column: str) -> list[str] | None:
    """Return the class names that a schema's metadata holds, or None. Raises DataError where they are no list."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    given = next((metadata[name] for name in (b"tltrain.classes", b"classes") if name in metadata), None)
    try:
        if given is not None:
            names = json.loads(given)
        else:
            features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            names = features.get(label_column, {}).get("names")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"the table's metadata cannot be read: {error}", "Write the table anew") from error
    if names is None:
        return None
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        what = f"the table's metadata names as classes {shown(str(names)[:80])}, which is no list of different names"
        raise DataError(what, "Correct its `classes`")
    return [str(name) for name in names]


def _labels(where: str, column: pa.ChunkedArray, names: list[str] | None, key: str) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [N], and the names they index."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) and names is not None:
        numbers = column.to_numpy().astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(names):
            what = f"{where}: labels {numbers.min()} to {numbers.max()} do not fit {len(names)} class names"
            raise DataError(Problem(what, "Number the classes from 0 or correct the names", key=key))
        return numbers, names
    if not (pa.types.is_integer(column.type) or _is_string(column.type)):
        what = f"{where}: labels are {column.type}, not strings or integers"
        raise DataError(Problem(what, "Store class names or numbers", key=key))
    found = sorted(column.unique().to_pylist())
    if "" in found:
        raise DataError(
            Problem(f"{where}: some rows have an empty label", "Fill them or leave these rows out", key=key)
        )
    values = found if names is None else names
    number = {value: i for i, value in enumerate(values)}
    if extra := [value for value in found if value not in number]:
        what = f"{where}: its list of classes does not hold the labels {_join(extra[:_SHOWN])}"
        raise DataError(Problem(what, "Correct the labels or the list", key=key))
    labels = np.array([number[value] for value in column.to_pylist()], dtype=np.int64)
    return labels, [str(value) for value in values]


def _unpack(where: str, column: pa.ChunkedArray, key: str) -> pa.ChunkedArray:
    """Return the bytes of structs {bytes, path}, or their paths where no bytes are stored."""
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    parts = dict(zip(names, column.flatten(), strict=True))
    for name in ("bytes", "path"):
        if name in parts and not parts[name].null_count:
            return parts[name]
    what = f"{where}: image structs need `bytes` or `path` in every row (fields: {_join(names)})"
    raise DataError(Problem(what, "Fill one of the two for all rows", key=key))


def _files(
    location: Location, paths: list[str], labels: np.ndarray, classes: list[str], key: str, *, skip_bad: bool
) -> FilesSource:
    root = location.parent()
    sizes = _sizes(root, paths)
    missing = [path for path in paths if path not in sizes]
    if missing and not (skip_bad and sizes):
        what = f"{location} names {len(missing)} files that are not there: {_join(missing[:_SHOWN])}"
        if len(missing) > _SHOWN:
            what += f" and {len(missing) - _SHOWN} more"
        raise DataError(Problem(what, f"Paths are relative to {root}", key=key))
    twice = len(paths) - len(set(paths))
    warnings = [f"{location}: {twice} rows name a file that another row names too."] if twice else []
    there = np.array([path in sizes for path in paths], dtype=bool)
    paths = [path for path in paths if path in sizes]
    lengths = np.array([sizes[path] for path in paths], np.int64)
    source = FilesSource(root, paths, lengths, labels[there], classes, warnings)
    source.bad = tuple(BadImage(path, "is not there, or is no file") for path in missing)
    return source


def _sizes(root: Location, paths: list[str]) -> dict[str, int]:
    """Return the sizes in bytes of those files that exist."""
    if root.is_local:
        return {path: os.path.getsize(root.child(path)) for path in paths if os.path.isfile(root.child(path))}
    # One listing instead of a request per file.
    known = {info.path: info.size for info in root.list_all() if info.type == fs.FileType.File}
    full = {path: posixpath.normpath(root.child(path)) for path in paths}
    return {path: known[full[path]] for path in paths if full[path] in known}
