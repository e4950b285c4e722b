"""Open a source of labelled images: a folder, a table, tar shards, a data set of a library, or a user's function."""

from __future__ import annotations

from typing import Literal

from tltrain.data.archives import open_archives
from tltrain.data.base import Source
from tltrain.data.folders import open_folder
from tltrain.data.locations import Location
from tltrain.data.python_source import open_python
from tltrain.data.shards import open_shards, shard_files
from tltrain.data.tables import open_table
from tltrain.errors import DataError, Problem
from tltrain.spec.names import (
    ARCHIVE_SUFFIX,
    HUGGINGFACE_PREFIX,
    PYTHON_PREFIX,
    TABLE_SUFFIXES,
    TORCHVISION_PREFIX,
    WEBDATASET_PREFIX,
    source_parts,
)
from tltrain.spec.schema import DataSpec

__all__ = ["Source", "open_source"]


def open_source(
    uri: str, data: DataSpec, *, split: Literal["train", "val", "test"], allow_code: bool = False
) -> Source:
    """Open the source that a spec names.

    uri: `torchvision:NAME`, `huggingface:PATH_OR_NAME`, `webdataset:PATTERN`, `python:package.module:function`, or a
    path or pyarrow URI of a folder (of classes, or of Parquet files), a Parquet or Arrow file, a CSV or a tar file.
    data: columns of tables, and where data sets are kept.
    split: the part of a data set that has several; elsewhere it only names the key in errors.
    allow_code: whether a user's function may be run.

    Raises DataError if there is no such source or its layout is not usable, SpecError for code that is not allowed.
    """
    key = f"data.{split}"
    prefix, name, _ = source_parts(uri)
    # These are imported where they are needed: torchvision and datasets take seconds, and others do without.
    if prefix == TORCHVISION_PREFIX:
        from tltrain.data.torchvision_sets import open_torchvision

        return open_torchvision(name, data, split)
    if prefix == HUGGINGFACE_PREFIX:
        from tltrain.data.hugging_face import open_hugging_face

        return open_hugging_face(uri, data, split)
    if prefix == PYTHON_PREFIX:
        return open_python(name, split, allow_code=allow_code)
    if prefix == WEBDATASET_PREFIX:
        return open_archives(name, data, key)
    return _open_path(Location(uri), data, key)


def split_names(uri: str, data: DataSpec) -> list[str]:
    """Return which of train, val and test a data set has itself; none for sources that are one split each.

    Raises DataError if it is not known.
    """
    prefix, name, _ = source_parts(uri)
    if prefix == TORCHVISION_PREFIX:
        from tltrain.data import torchvision_sets

        return torchvision_sets.split_names(name)
    if prefix == HUGGINGFACE_PREFIX:
        from tltrain.data import hugging_face

        return hugging_face.split_names(uri, data)
    return []


def evaluation_split(uri: str, data: DataSpec) -> Literal["train", "val", "test"]:
    """Return the split that a trained model is evaluated on: a data set's test, else val, else the whole set."""
    names = split_names(uri, data)
    return "val" if "val" in names and "test" not in names else "test" if not names or "test" in names else "train"


def _open_path(location: Location, data: DataSpec, key: str) -> Source:
    kind = location.kind()
    if kind is None:
        raise DataError(Problem(f"{location} does not exist", "Check the path", key=key))
    if kind == "folder":
        shards = shard_files(location)
        if shards:
            return open_shards(location, shards, data, key)
        return open_folder(location, key, skip_bad=data.on_bad_image == "skip")
    if location.name.lower().endswith(TABLE_SUFFIXES):
        return open_table(location, data, key)
    if location.name.lower().endswith(ARCHIVE_SUFFIX):
        return open_archives(location.uri, data, key)
    raise DataError(
        Problem(
            f"{location} is not a kind of file that can be read",
            "Give a folder with one folder per class (archives unpacked), a table "
            f"({', '.join(TABLE_SUFFIXES)}), WebDataset shards ({ARCHIVE_SUFFIX}), or torchvision:NAME",
            key=key,
        )
    )
