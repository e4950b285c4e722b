"""Hugging Face data sets, from a folder of this machine or from the hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from tltrain.data.base import Source
from tltrain.data.tables import IMAGE_COLUMNS, ColumnSource, columns_of, is_binary
from tltrain.errors import DataError, Problem
from tltrain.spec.names import HUGGINGFACE_PREFIX, source_parts
from tltrain.spec.schema import DataSpec

_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_OURS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
_SAVED = ("dataset_dict.json", "state.json")


def open_hugging_face(uri: str, data: DataSpec, split: Literal["train", "val", "test"]) -> Source:
    """Open one split of a data set: `huggingface:PATH_OR_NAME`, with `:SPLIT` where it is called otherwise.

    PATH is a folder that `save_to_disk` has written, or one of data files. A NAME is fetched from the hub into
    `data.root` where `data.download` allows it. No code of the data set is run. Images must be encoded: bytes in the
    data set, or files, which are copied into its cache.

    Raises DataError if the package is missing, there is no such data set or split, or its columns are not usable.
    """
    key = f"data.{split}"
    _, path, given = source_parts(uri)
    library = _library(key)
    dataset, part = _load(library, path, given.removeprefix(":"), data, split)
    image, label = _columns(library, path, dataset.features, data, key)
    names = getattr(dataset.features[label], "names", None)
    dataset = dataset.select_columns([image, label])
    if isinstance(dataset.features[image], library.Image):
        dataset = dataset.cast_column(image, library.Image(decode=False))
    where = f"{HUGGINGFACE_PREFIX}{path}:{part}"
    images, labels, classes = columns_of(where, _table(dataset, image, label, _is_saved(path)), names, key)
    if not is_binary(images.type):
        action = "Embed the images: datasets.table.embed_table_storage, or push_to_hub, does that"
        raise DataError(Problem(f"{where} names image files instead of holding them", action, key=key))
    return ColumnSource(f"{os.path.basename(path.rstrip('/'))}/{part}", images, labels, classes)


def split_names(uri: str, data: DataSpec) -> list[str]:
    """Return which of train, val and test a data set has; train alone where the source names its split.

    Raises DataError if it is not there.
    """
    _, path, given = source_parts(uri)
    if given:
        return ["train"]
    there = _splits(_library("data"), path, data, "data")
    return [ours for ours in _OURS if _theirs(ours, there)] or ["train"]


def _library(key: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        action = "pip install 'tltrain[huggingface]'"
        raise DataError(Problem("huggingface: needs the package datasets", action, key=key)) from error
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _load(
    library: Any, path: str, given: str, data: DataSpec, split: Literal["train", "val", "test"]
) -> tuple[Any, str]:
    """Return a split, memory-mapped, and what it is called."""
    key = f"data.{split}"
    there = _splits(library, path, data, key)
    name = given if given in there else None if given else _theirs(split, there)
    if not there and not given:
        return _guarded(library.load_from_disk, path, key, keep_in_memory=False), "all"
    if name is None:
        what = f"{HUGGINGFACE_PREFIX}{path} has no split for {key}" if not given else f"{path} has no split {given}"
        action = f"It has {', '.join(there) or 'none'}; name one as {HUGGINGFACE_PREFIX}{path}:SPLIT"
        raise DataError(Problem(f"{what}", action, key=key))
    if _is_saved(path):
        return _guarded(library.load_from_disk, os.path.join(path, name), key, keep_in_memory=False), name
    cache = os.path.join(os.path.expanduser(data.root), "huggingface")
    return _guarded(library.load_dataset, path, key, split=name, cache_dir=cache, keep_in_memory=False), name


def _splits(library: Any, path: str, data: DataSpec, key: str) -> list[str]:
    """Return the names of a data set's splits; none for a single one that was saved without a name."""
    if _is_saved(path):
        if not Path(path, _SAVED[0]).exists():
            return []
        return list(_guarded(library.load_from_disk, path, key, keep_in_memory=False))
    if not Path(path).is_dir() and not data.download:
        action = "Save it with save_to_disk and name that folder, or set data.download: true"
        raise DataError(Problem(f"{path} is no folder here, and data.download is false", action, key=key))
    return _guarded(library.get_dataset_split_names, path, key)


def _is_saved(path: str) -> bool:
    return any(Path(path, name).is_file() for name in _SAVED)


def _guarded(function: Any, path: str, key: str, **arguments: Any) -> Any:
    try:
        return function(path, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        action = "Check the name and the network, or name a folder that save_to_disk has written"
        raise DataError(Problem(f"the data set {path} cannot be opened: {error}", action, key=key)) from error


def _theirs(split: str, there: Sequence[str]) -> str | None:
    """Return what a split of ours is called; the only split of a data set is its training data."""
    found = next((name for name in _SPLIT_NAMES[split] if name in there), None)
    return there[0] if found is None and split == "train" and len(there) == 1 else found


def _columns(library: Any, path: str, features: Any, data: DataSpec, key: str) -> tuple[str, str]:
    """Return the names of the image column and the label column."""
    images = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    usual = [name for name in (*IMAGE_COLUMNS, "img") if name in features]
    image = data.image_column or next(iter([*images, *usual]), "image")
    labels = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    is_usual = data.label_column == DataSpec.model_fields["label_column"].default
    label = labels[0] if data.label_column not in features and is_usual and len(labels) == 1 else data.label_column
    problems = [
        Problem(
            f"{HUGGINGFACE_PREFIX}{path} has no column {name}",
            f"Set {setting} to one of: {', '.join(features)}",
            key=key,
        )
        for name, setting in ((image, "data.image_column"), (label, "data.label_column"))
        if name not in features
    ]
    if problems:
        raise DataError(problems)
    return image, label


def _table(dataset: Any, image: str, label: str, is_saved: bool) -> Any:
    """Return the two columns as an Arrow table that is mapped from the data set's files where they hold the images."""
    arrow = dataset.with_format("arrow")
    table = arrow[:].select([image, label])
    column = table.column(0)
    if not is_saved and pa.types.is_struct(column.type) and any(c.field("bytes").null_count for c in column.chunks):
        from datasets.table import embed_table_storage

        table = arrow.map(embed_table_storage, batched=True, load_from_cache_file=True)[:].select([image, label])
    return table
