"""WebDataset shards: tar files whose members `KEY.jpg` and `KEY.cls` or `KEY.json` are samples, read in place."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from tltrain.data.base import Source, digest
from tltrain.data.decode import SUFFIXES
from tltrain.data.locations import Location
from tltrain.errors import DataError, Problem
from tltrain.spec.names import ARCHIVE_SUFFIX
from tltrain.spec.schema import DataSpec

_LABELS = (".cls", ".json")
_MAX_LABEL_BYTES = 1 << 20
_THREADS = 8
_SHOWN = 10
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ArchivesSource(Source):
    """Images inside of uncompressed tar files, by where they begin; nothing is ever unpacked."""

    def __init__(self, shards: Sequence[Location], index: pa.Table, labels: np.ndarray, classes: Sequence[str]) -> None:
        """Take shards and an index with the columns name, shard, offset and size, one row per image."""
        self.classes = tuple(classes)
        self.labels = labels
        self.fork_safe = all(shard.is_local for shard in shards)
        self._shards = list(shards)
        self._index = index

    def read(self, index: int) -> bytes:
        """Return the bytes of one member."""
        _, number, offset, size = (self._index.column(i)[index].as_py() for i in range(4))
        shard = self._shards[number]
        try:
            if shard.is_local:
                with open(shard.path, "rb") as file:
                    content = os.pread(file.fileno(), size, offset)
            else:
                with shard.filesystem.open_input_file(shard.path) as file:
                    content = file.read_at(size, offset)
        except (FileNotFoundError, PermissionError) as error:
            problem = Problem(f"cannot be read: {error}", "Restore the shard", where=self.identity(index))
            raise DataError(problem) from error
        if len(content) != size:
            raise DataError(Problem("the shard has become shorter", "Restore it", where=self.identity(index)))
        return content

    def identity(self, index: int) -> str:
        """Return `SHARD/MEMBER`, the shard by its file's name."""
        return f"{self._shards[self._index.column(1)[index].as_py()].name}/{self._index.column(0)[index].as_py()}"

    def fingerprint(self) -> str:
        """Return a sha256 over the names of shards and members, sizes and labels."""
        names = [shard.name for shard in self._shards] + self._index.column(0).to_pylist()
        return digest("archives", self.classes, self.encoded_sizes(), self.labels, names=names)

    def encoded_sizes(self) -> np.ndarray:
        """Return the sizes of the members."""
        return self._index.column(3).to_numpy()


@dataclass
class _Shard:
    """What one shard holds: of each sample its image's (member, offset, size) and its label."""

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    num_unsafe: int = 0
    has_end: bool = True


def open_archives(pattern: str, data: DataSpec, key: str) -> ArchivesSource:
    """Open the shards that a path or an address names: `*`, `?`, `[...]` in its last part, `{000..127}` anywhere.

    A sample is an image and a label that share a name up to the first dot: `.cls` holds a class's name or number,
    `.json` an object with `data.label_column`. Whole numbers are names in their numerical order, as in tables. Links,
    devices and members whose names are absolute or hold `..` are left out, and a warning counts them.

    Raises DataError for shards that are missing, compressed or cut short, and for images without labels.
    """
    shards = _matching(pattern, key)
    with ThreadPoolExecutor(_THREADS) as executor:
        contents = list(executor.map(lambda shard: _read_shard(shard, data.label_column, key), shards))
    _check(shards, contents, key)
    rows, values = [], []
    for number, content in enumerate(contents):
        for name in sorted(content.images):
            member, offset, size = content.images[name]
            rows.append((member, number, offset, size))
            values.append(content.labels[name])
    if not rows:
        raise DataError(Problem(f"{pattern} holds no images", "Give shards with images and labels", key=key))
    classes = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    numbers = {value: number for number, value in enumerate(classes)}
    columns = zip(("name", "shard", "offset", "size"), zip(*rows, strict=True), strict=True)
    index = pa.table({name: pa.array(column) for name, column in columns}).combine_chunks()
    labels = np.array([numbers[value] for value in values], dtype=np.int64)
    source = ArchivesSource(shards, index, labels, [str(value) for value in classes])
    source.warnings = tuple(_warnings(pattern, contents))
    return source


def _matching(pattern: str, key: str) -> list[Location]:
    """Return the shards in the order of their names."""
    found: list[Location] = []
    for text in _expanded(pattern):
        location = Location(text)
        if not any(sign in location.name for sign in "*?["):
            if location.kind() != "file":
                raise DataError(Problem(f"{location} does not exist", "Check the path", key=key))
            found.append(location)
            continue
        parent = location.parent()
        if parent.kind() == "folder":
            files = [info for info in _children(parent) if info.type == fs.FileType.File]
            names = [info.base_name for info in files if fnmatch.fnmatchcase(info.base_name, location.name)]
            found += [_sibling(location, name) for name in names]
    if not found:
        raise DataError(Problem(f"{pattern} matches no file", "Check the path and the pattern", key=key))
    return sorted(found, key=lambda shard: shard.path)


def _children(folder: Location) -> list[fs.FileInfo]:
    try:
        return folder.filesystem.get_file_info(fs.FileSelector(folder.path))
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error}", "Check the address and your access.") from error


def _sibling(location: Location, name: str) -> Location:
    address, mark, query = location.uri.partition("?") if "://" in location.uri else (location.uri, "", "")
    return Location(f"{address.rpartition('/')[0]}/{name}{mark}{query}")


def _expanded(pattern: str) -> Iterator[str]:
    """Yield a pattern with every `{a,b}` and `{000..127}` replaced by each of its values."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    span = _RANGE.fullmatch(found.group(1))
    if span:
        first, last = span.groups()
        values = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        values = found.group(1).split(",")
    for value in values:
        yield from _expanded(pattern[: found.start()] + value + pattern[found.end() :])


def _read_shard(shard: Location, label_column: str, key: str) -> _Shard:
    """List the members of a shard, reading headers and labels alone."""
    content = _Shard()
    try:
        with shard.filesystem.open_input_file(shard.path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = file.size()
            for member in archive:
                if member.isdir():
                    continue
                if not _is_safe(member):
                    content.num_unsafe += 1
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                _take(content, archive, member, label_column, shard, key)
            # tarfile takes a header that is cut short, or missing, for the end.
            file.seek(archive.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if end.strip(b"\0") or 0 < len(end) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it is cut short")
            content.has_end = bool(end)
    except (tarfile.TarError, EOFError) as error:
        action = f"Give whole, uncompressed tar files ({ARCHIVE_SUFFIX}); compressed ones cannot be read at any place"
        raise DataError(Problem(f"{shard} is no tar file that can be read: {error}", action, key=key)) from error
    return content


def _is_safe(member: tarfile.TarInfo) -> bool:
    parts = member.name.split("/")
    is_plain = member.isreg() and not member.issparse()
    return is_plain and not member.name.startswith("/") and ".." not in parts and "\\" not in member.name


def _take(
    content: _Shard, archive: tarfile.TarFile, member: tarfile.TarInfo, label_column: str, shard: Location, key: str
) -> None:
    folder, mark, base = member.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    name, suffix = f"{folder}{mark}{stem}", f"{dot}{extension}".lower()
    if base.startswith("."):
        return
    if suffix in SUFFIXES:
        if name in content.images:
            content.twice.append(member.name)
        content.images[name] = (member.name, member.offset_data, member.size)
    elif suffix in _LABELS and (suffix == ".cls" or name not in content.labels):
        stream = archive.extractfile(member) if member.size <= _MAX_LABEL_BYTES else None
        where = f"{shard}/{member.name}"
        if stream is None:
            raise DataError(Problem("is too large for a label", "Put a class's name or number in it", where, key))
        label = _label(stream.read(), suffix, label_column, where, key)
        if label is not None:
            content.labels[name] = label


def _label(content: bytes, suffix: str, label_column: str, where: str, key: str) -> int | str | None:
    """Return a number or a name; None for JSON that has none."""
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text).get(label_column) if suffix == ".json" else text
    except (ValueError, AttributeError, RecursionError) as error:
        what = (
            "holds no label: it nests too deeply" if isinstance(error, RecursionError) else f"holds no label: {error}"
        )
        raise DataError(Problem(what, "Put a class's name or number, or a JSON object, in it", where, key)) from error
    if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value)) == value:
        return int(value)
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool) and value != ""):
        return value
    raise DataError(Problem(f"holds {value!r}, which is no label", "Put a class's name or number in it", where, key))


def _check(shards: Sequence[Location], contents: Sequence[_Shard], key: str) -> None:
    problems = []
    names = Counter(shard.name for shard in shards)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        what = f"several shards are called {_some(twice)}"
        problems.append(Problem(what, "Give them different names: samples are told apart by them", key=key))
    for shard, content in zip(shards, contents, strict=True):
        if content.twice:
            what = f"{shard} has several images for one sample: {_some(content.twice)}"
            problems.append(Problem(what, "Keep one of them", key=key))
        without = [image[0] for name, image in content.images.items() if name not in content.labels]
        if without:
            what = f"{shard} has {len(without)} images without a label: {_some(without)}"
            problems.append(Problem(what, "Add KEY.cls, or KEY.json with data.label_column, for each", key=key))
    if problems:
        raise DataError(problems[:_SHOWN])


def _warnings(pattern: str, contents: Sequence[_Shard]) -> Iterator[str]:
    without_end = sum(not content.has_end for content in contents)
    if without_end:
        yield f"{pattern}: {without_end} archives have no end mark and may have been cut short."
    unsafe = sum(content.num_unsafe for content in contents)
    if unsafe:
        yield f"{pattern}: {unsafe} members are left out: links, no plain files, or names that lead out of the archive."
    loose = sum(len(content.labels.keys() - content.images.keys()) for content in contents)
    if loose:
        yield f"{pattern}: {loose} labels without an image are left out."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
