"""The image folder: one folder per class, on this machine or on a remote file system."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from pyarrow import fs

from tltrain.data.base import FilesSource
from tltrain.data.decode import SUFFIXES
from tltrain.data.locations import Location
from tltrain.errors import DataError, Problem

LAYOUT = "The layout is FOLDER/CLASS/image.jpg: one folder per class, named like the class."
_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "icon\r"}
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_ERRORS_SHOWN = 10


@dataclass
class Tree:
    """What a folder holds: relative paths of files with their sizes in bytes, and of folders."""

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def is_clutter(path: str) -> bool:
    """Return whether a relative path is hidden or left behind by an operating system."""
    return any(part.startswith(".") or part.lower() in _CLUTTER for part in path.split("/"))


def list_tree(root: Location) -> Tree:
    """List all files and folders under `root`, without hidden ones."""
    tree = Tree()
    if root.is_local:
        top = os.path.realpath(root.path)
        _list_local(top, "", (top,), tree)
    else:
        _list_remote(root, tree)
    return tree


def _list_remote(root: Location, tree: Tree) -> None:
    for info in root.list_all():
        relative = info.path[len(root.path) :].lstrip("/")
        if is_clutter(relative):
            continue
        if info.type == fs.FileType.Directory:
            tree.folders.append(relative)
        else:
            tree.files[relative] = info.size
            tree.folders.extend(str(parent) for parent in PurePosixPath(relative).parents if parent.name)
    tree.folders = sorted(set(tree.folders))


def _list_local(top: str, prefix: str, above: tuple[str, ...], tree: Tree) -> None:
    """List one folder. `above` holds its real path and those of the folders it stands in, against circles."""
    for entry in _entries(above[-1], tree):
        relative = prefix + entry.name
        real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        problem = _link_problem(entry, top, real, above) if entry.is_symlink() else None
        if problem:
            tree.problems.append(problem)
        elif entry.is_dir():
            tree.folders.append(relative)
            _list_local(top, relative + "/", (*above, real), tree)
        else:
            tree.files[relative] = entry.stat().st_size


def _entries(folder: str, tree: Tree) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted((e for e in entries if not is_clutter(e.name)), key=lambda e: e.name)
    except PermissionError:
        tree.problems.append(Problem("the folder may not be read", "Change its permissions", where=folder))


def _link_problem(entry: os.DirEntry[str], top: str, real: str, above: tuple[str, ...]) -> Problem | None:
    if not os.path.exists(real):
        return Problem("the link is broken", "Remove it or restore its target", where=entry.path)
    if os.path.commonpath([top, real]) != top:
        action = "Copy the target into the folder, or list the files in a CSV instead"
        return Problem(f"the link leaves the data folder for {real}", action, where=entry.path)
    if real in above:
        return Problem("the link leads back to a folder it stands in", "Remove it", where=entry.path)
    return None


def open_folder(root: Location, key: str) -> FilesSource:
    """Read the list of images of a folder with one folder per class; images may stand deeper inside a class.

    Raises DataError for links that are broken or leave the folder, for classes without images, and for other
    layouts. `key` is the key of the spec that named the folder.
    """
    tree = list_tree(root)
    if tree.problems:
        raise DataError(_first(tree.problems))
    classes = sorted(folder for folder in tree.folders if "/" not in folder)
    images = sorted((p for p in tree.files if _suffix(p) in SUFFIXES), key=lambda p: p.split("/"))
    _check_layout(root, key, classes, images)
    inside = [path for path in images if "/" in path]
    _check_classes(root, key, classes, inside)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[path.split("/", 1)[0]] for path in inside], dtype=np.int64)
    sizes = np.array([tree.files[path] for path in inside], dtype=np.int64)
    warnings = _warnings(root, tree, len(images) - len(inside))
    return FilesSource(root, inside, sizes, labels, classes, warnings)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _first(problems: list[Problem]) -> list[Problem]:
    rest = len(problems) - _ERRORS_SHOWN
    return problems[:_ERRORS_SHOWN] + ([Problem(f"and {rest} more of these")] if rest > 0 else [])


def _check_layout(root: Location, key: str, folders: list[str], images: list[str]) -> None:
    if not folders:
        what = "holds images but no class folders" if images else "holds no class folders and no images"
        raise DataError(Problem(f"{root} {what}", LAYOUT, key=key))
    split = key.rpartition(".")[2]
    if found := _splits_among(folders, images):
        hint = found.get(split, found["train"])
        action = f"Name the part you mean: {key}: {os.path.join(str(root), hint)}"
        parts = ", ".join(sorted(found.values()))
        raise DataError(Problem(f"{root} holds the folders of several splits ({parts})", action, key=key))


def split_folders(root: Location) -> dict[str, str]:
    """Return the folders of splits in `root` by the names train, val and test; empty where there are none."""
    tree = list_tree(root)
    return _splits_among([folder for folder in tree.folders if "/" not in folder], tree.files)


def _splits_among(folders: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    found = {name: folder for name, names in _SPLIT_NAMES.items() for folder in folders if folder.lower() in names}
    images = [path for path in files if _suffix(path) in SUFFIXES]
    is_split = "train" in found and len(found) > 1 and not _has_images(found["train"], images)
    return found if is_split else {}


def _has_images(folder: str, images: Iterable[str]) -> bool:
    """Return whether images stand right in `folder`, as they do in a class."""
    return any(path.rpartition("/")[0] == folder for path in images)


def _check_classes(root: Location, key: str, classes: list[str], images: list[str]) -> None:
    filled = {path.split("/", 1)[0] for path in images}
    empty = [name for name in classes if name not in filled]
    action = f"Put images in or remove the folder. Readable are {', '.join(sorted(SUFFIXES))}"
    problems = [Problem(f"the class folder {name} holds no images", action, where=str(root), key=key) for name in empty]
    if problems:
        raise DataError(_first(problems))


def _warnings(root: Location, tree: Tree, num_loose: int) -> list[str]:
    warnings = []
    ignored = Counter(_suffix(path) or "no suffix" for path in tree.files if _suffix(path) not in SUFFIXES)
    if ignored:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in ignored.most_common())
        warnings.append(f"{root}: {ignored.total()} files that are not images are ignored ({kinds}).")
    if num_loose:
        warnings.append(f"{root}: {num_loose} images outside the class folders are ignored.")
    return warnings
