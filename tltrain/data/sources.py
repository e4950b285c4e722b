"""Open a source of labelled images: an image folder, a table, a CSV, or a torchvision data set."""

from __future__ import annotations

from typing import Literal

from tltrain.data.base import Source
from tltrain.data.folders import open_folder
from tltrain.data.locations import Location
from tltrain.data.tables import open_table
from tltrain.errors import DataError, Problem
from tltrain.spec.names import TABLE_SUFFIXES, TORCHVISION_PREFIX
from tltrain.spec.schema import DataSpec

__all__ = ["Source", "open_source"]


def open_source(uri: str, data: DataSpec, *, split: Literal["train", "val", "test"]) -> Source:
    """Open the source that a spec names.

    uri: `torchvision:NAME`, or a path or pyarrow URI of a folder, a Parquet or Arrow file, or a CSV.
    data: columns of tables, and where torchvision data sets are kept.
    split: the part of a torchvision data set; elsewhere it only names the key in errors.

    Raises DataError if there is no such source or its layout is not usable.
    """
    key = f"data.{split}"
    if uri.startswith(TORCHVISION_PREFIX):
        from tltrain.data.torchvision_sets import open_torchvision  # torchvision takes seconds, and others do without

        return open_torchvision(uri.removeprefix(TORCHVISION_PREFIX), data, split)
    location = Location(uri)
    kind = location.kind()
    if kind is None:
        raise DataError(Problem(f"{location} does not exist", "Check the path", key=key))
    if kind == "folder":
        return open_folder(location, key)
    if location.name.lower().endswith(TABLE_SUFFIXES):
        return open_table(location, data, key)
    raise DataError(
        Problem(
            f"{location} is not a kind of file that can be read",
            "Give a folder with one folder per class (archives unpacked), a table "
            f"({', '.join(TABLE_SUFFIXES)}), or torchvision:NAME",
            key=key,
        )
    )
