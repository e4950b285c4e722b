"""Images to classify, without labels: files, a folder, a pattern or Parquet, on this machine or in cloud storage."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.implementations.arrow import ArrowFSWrapper

from tltrain.data.bad import BadImage
from tltrain.data.base import FilesSource, Source
from tltrain.data.decode import SUFFIXES
from tltrain.data.folders import is_clutter, list_tree
from tltrain.data.locations import Location
from tltrain.data.tables import PARQUET_SUFFIXES
from tltrain.errors import DataError, SpecError
from tltrain.inference.parquet import open_parquet

_MAGIC = re.compile(r"[*?\[]")
_MAGIC_IN_ADDRESS = re.compile(r"[*\[]")  # there, a question mark begins the query

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Images:
    """What is to be classified. bad: images that are known not to be readable; the source does not hold them."""

    source: Source
    bad: tuple[BadImage, ...] = ()


def open_images(names: Sequence[str], image_column: str | None = None, *, run_column: str | None = None) -> Images:
    """List the images that are named, without reading one.

    names: one path, pattern or address of an image, a folder (searched with all below it) or Parquet files; or many
    paths of image files. image_column: the column of Parquet that holds image bytes, or paths relative to the file's
    folder; without one, `run_column`, image, path or file_name, whichever is there.

    What an image is called: its path below the folder, its path as it was named or matched, or FILE#ROW.

    Raises DataError where there are none, SpecError where the names cannot be used together.
    """
    images = _many_files(names) if len(names) > 1 else _one(names[0], image_column, run_column)
    if not len(images.source) and not images.bad:
        raise DataError(f"{', '.join(names)} has no images", f"Readable are {', '.join(sorted(SUFFIXES))} and Parquet")
    return images


def _one(name: str, image_column: str | None, run_column: str | None) -> Images:
    is_pattern = bool((_MAGIC_IN_ADDRESS if "://" in name else _MAGIC).search(name))
    if is_pattern and ("://" in name or not os.path.lexists(name)):
        root, paths, sizes, bad = _matching(name)
    else:
        location = Location(name)
        kind = location.kind()
        if kind is None:
            raise DataError(f"{location} does not exist", "Check the path")
        root, paths, sizes, bad = _below(location) if kind == "folder" else _single(location, name)
    if paths and all(path.lower().endswith(PARQUET_SUFFIXES) for path in paths):
        source, without = open_parquet(root, paths, image_column, run_column)
        return Images(source, (*bad, *(BadImage(id, "has no image (null)") for id in without)))
    return Images(_files(root, paths, sizes), tuple(bad))


_Listing = tuple[Location, list[str], list[int], list[BadImage]]


def _files(root: Location, paths: Sequence[str], sizes: Sequence[int]) -> FilesSource:
    labels = np.zeros(len(paths), np.int64)
    return FilesSource(root, paths, np.array(sizes, np.int64), labels, ())


def _many_files(names: Sequence[str]) -> Images:
    """Image files of this machine, as a shell makes them of a pattern."""
    for name in names:
        if "://" in name or os.path.isdir(name) or name.lower().endswith(PARQUET_SUFFIXES):
            what = f"{name} is no image file, and only these may be named together"
            raise SpecError(what, "Name one folder, one Parquet file, or one pattern in quotes at a time")
    found = [name for name in names if os.path.isfile(name)]
    bad = tuple(BadImage(name, "does not exist") for name in names if not os.path.isfile(name))
    return Images(_files(Location("."), found, [os.path.getsize(name) for name in found]), bad)


def _single(location: Location, name: str) -> _Listing:
    """One file. It is taken for an image whatever its name is; decoding tells."""
    size = location.filesystem.get_file_info(location.path).size or 0
    if "://" in name or name.lower().endswith(PARQUET_SUFFIXES):
        return location.parent(), [location.name], [size], []
    return Location("."), [name], [size], []


def _below(root: Location) -> _Listing:
    """All images below a folder; where there are none, all Parquet files."""
    tree = list_tree(root)
    bad = [BadImage(root.child(one.path), one.reason) for one in tree.refused]
    paths = _readable(list(tree.files), str(root))
    return root, paths, [tree.files[path] for path in paths], bad


def _readable(paths: list[str], where: str) -> list[str]:
    """Return the images among `paths`, or the Parquet files where there are no images, folder by folder."""
    images = [path for path in paths if os.path.splitext(path)[1].lower() in SUFFIXES]
    chosen = images or [path for path in paths if path.lower().endswith(PARQUET_SUFFIXES)]
    if chosen and len(chosen) < len(paths):
        logger.warning("%s: left out %d that are not images", where, len(paths) - len(chosen))
    return sorted(chosen, key=lambda path: path.split("/"))


def _matching(pattern: str) -> _Listing:
    """The files that a pattern matches; `**` stands for any folders."""
    is_address = "://" in pattern
    address, _, query = pattern.partition("?") if is_address else (pattern, "", "")
    first = _MAGIC.search(address)
    assert first is not None
    above, slash, _ = address[: first.start()].rpartition("/")
    root = Location((f"{above}?{query}" if query else above) or slash or ".")
    below = address[len(above + slash) :]
    try:
        wrapper: Any = ArrowFSWrapper(root.filesystem)
        found = wrapper.glob(os.path.join(glob.escape(root.path), below), detail=True)
    except OSError as error:
        raise DataError(f"cannot list {root}: {error}", "Check the address and your access") from error
    files = {
        path[len(root.path) :].lstrip("/"): entry["size"] for path, entry in found.items() if entry["type"] == "file"
    }
    paths = _readable([path for path in files if not is_clutter(path)], address)
    if not paths:
        raise DataError(f"no images match {address}", "Check the pattern; ** stands for any folders")
    sizes = [files[path] for path in paths]
    if is_address:
        return root, paths, sizes, []
    return Location("."), [above + slash + path for path in paths], sizes, []
